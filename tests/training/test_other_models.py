"""Models other than SegFormer through the whole trainer: train, stop, resume, evaluate, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segformer_spark.checkpoint.export import load_model
from segformer_spark.cli import main
from segformer_spark.config.batch import plan_batches
from segformer_spark.config.load import load_config
from segformer_spark.data.loader import TrainBatch
from segformer_spark.engine.engine import Engine
from segformer_spark.losses.build import build_loss
from segformer_spark.models.pretrained import build_model
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run

UNET = (
    "model.variant=b2",
    "model.name=unet",
    "training.epochs=2",
    "model.encoder=mobilenet_v2",
    "training.optimizer.lr=1e-3",
)


def test_a_stopped_run_continues_bit_for_bit(spark_root: Path, tmp_path: Path) -> None:
    root, whole, cut = str(spark_root), str(tmp_path / "whole"), str(tmp_path / "cut")
    through = run_on_ranks(1, short_run, root, whole, UNET)[0]
    first = run_on_ranks(1, short_run, root, cut, UNET, None, 4)[0]
    rest = run_on_ranks(1, short_run, root, cut, UNET, "auto")[0]
    assert first + rest == through
    one, other = (load_file(Path(path) / "final" / "model.safetensors") for path in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    record = json.loads((Path(cut) / "training_params.json").read_text())
    assert (record["steps"], record["runtime"]["steps_per_epoch"]) == (len(through), len(through) // 2)
    card = json.loads((Path(cut) / "best" / "segformer_spark.json").read_text())
    assert card["model"] == {"name": "unet", "encoder": "mobilenet_v2", "library": "segmentation_models_pytorch"}
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", cut])
    assert ended.value.code == 0
    assert (Path(cut) / "evaluation" / "val" / "results.json").is_file()


def refused(group: Group, root: str, path: str, settings: tuple[str, ...]) -> str:
    from segformer_spark.errors import ConfigError

    try:
        short_run(group, root, path, settings)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("training.batch_size=2",), "training.accumulation exact: unet has batch norm in its encoder"),
        (
            ("model.name=fpn", "training.batch_size=1", "training.global_batch_size=1", "data.image_size=32"),
            "a step needs 2 images over all devices",
        ),
    ],
)
def test_batches_that_a_model_cannot_be_trained_with(
    spark_root: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    assert message in run_on_ranks(1, refused, str(spark_root), str(tmp_path / "run"), (*UNET, *settings))[0]


@pytest.mark.sweep
def test_rectangles_train_one_image_at_a_time(spark_root: Path, tmp_path: Path) -> None:
    """Study B's model 5 at toy size: trained, cut off, resumed bit for bit, and evaluated at its own size."""
    settings = (
        *("model.name=hiera", "model.variant=b2", "model.encoder=hiera_tiny_224", "model.pretrained=none"),
        "data.image_size=32x64",
        *("training.batch_size=1", "training.global_batch_size=1", "training.max_steps=3"),
        "training.scheduler.warmup_epochs=0",
    )
    whole = run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "whole"), settings)[0]
    first = run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "cut"), settings, None, 2)[0]
    rest = run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "cut"), settings, "auto")[0]
    assert first + rest == whole
    model, card = load_model(tmp_path / "cut" / "best")
    assert card.image_size == (32, 64)
    assert model.position_grid() == (8, 16)
    log = (tmp_path / "cut" / "log.txt").read_text()
    assert "hiera with hiera_tiny_224 from none, 32x64 px" in log
    assert "hiera: with one image at a time the 1 batch norm after global pooling has no variance to divide by" in log


def losses_of_deeplab(group: Group, weight: float) -> tuple[float, float]:
    settings = ["model.name=deeplabv3", "model.pretrained=none", "training.loss.type=ce", "training.batch_size=2"]
    config = load_config(overrides=[*settings, f"training.loss.auxiliary_weight={weight}"]).config
    model = build_model(config.model, ["a", "b", "c"], 0, (64, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plan = plan_batches(config.training, 1)
    images = torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    engine = Engine(model, build_loss(config.training.loss, 3, 255, group.differentiable_sum), config, plan, group)
    moved = dict(engine.model.named_parameters())["network.aux_classifier.4.weight"]
    before = moved.detach().clone()
    engine.set_lr(1e-3)
    loss = engine.train_step([TrainBatch(images, labels)], 0).loss
    return loss, float((moved.detach() - before).abs().max())


def test_the_auxiliary_loss_counts_with_its_weight() -> None:
    """loss = main + w auxiliary: three weights lie on a line, and the head learns unless w is 0."""
    (without, still), (some, moved), (more, _) = (run_on_ranks(1, losses_of_deeplab, w)[0] for w in (0.0, 0.4, 0.8))
    auxiliary = (some - without) / 0.4
    assert 0.8 < auxiliary < 2.0, "about log 3 for untrained logits"
    assert more - without == pytest.approx(0.8 * auxiliary, rel=1e-4)
    assert moved > 5e-4
    assert still < 1e-4, "weight decay alone"
