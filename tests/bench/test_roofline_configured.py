from __future__ import annotations

import pytest

from segformer_spark.bench.roofline.configured import estimate_step
from segformer_spark.bench.roofline.device_models import DEVICE_MODELS
from segformer_spark.config.load import load_config
from tests.tiny import TINY_SETTINGS

H100 = DEVICE_MODELS["h100"]


@pytest.mark.parametrize(
    "settings",
    [
        TINY_SETTINGS,
        ("model.name=unet", "model.encoder=resnet18", "model.pretrained=none", "training.optimizer.type=sgd"),
        ("model.name=vit", "model.encoder=vit_tiny_patch16_224", "model.pretrained=none", "training.precision=bf16"),
    ],
    ids=["segformer", "unet", "vit"],
)
def test_a_step_of_any_model_is_estimated(settings: tuple[str, ...]) -> None:
    config = load_config(overrides=[*settings, "data.image_size=64x128", "training.batch_size=2"]).config
    found = estimate_step(config, 5, H100)
    assert 0 < found.encoder < found.passes
    assert 0 < found.update < found.passes
    assert found.peak_bytes > 1e5


def test_exact_accumulation_runs_the_encoder_twice_and_updates_once() -> None:
    exact, mean = (
        load_config(overrides=[*TINY_SETTINGS, "data.image_size=64", f"training.accumulation={kind}"]).config
        for kind in ("exact", "mean")
    )
    found = estimate_step(exact, 3, H100)
    assert found.seconds(exact, 1) == pytest.approx(found.passes + found.update)
    assert found.seconds(mean, 4) == pytest.approx(4 * found.passes + found.update)
    assert found.seconds(exact, 4) == pytest.approx(4 * (found.passes + found.encoder) + found.update)
