"""One optimizer step of every distinct model of the study files, at its own size and batch, in this process."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from segformer_spark.config.batch import plan_batches
from segformer_spark.config.image_size import size_text
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.config.schema import Config
from segformer_spark.config.study import read_study, resolve_run
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.engine.optimizer import build_optimizer
from segformer_spark.losses.build import build_loss
from segformer_spark.models.pretrained import build_model
from segformer_spark.training.plan import check_model

FOLDER = PROJECT_ROOT / "configs" / "study"
CLASSES = {"street_hazards": 13, "voc": 21, "pets": 3, "camvid": 11}


def distinct() -> dict[str, Config]:
    """{what is distinct about it: a configuration}."""
    found: dict[str, Config] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        text = path.read_text()
        if "\nmodels:" not in text or path.stem.startswith(("a_", "demo_")):
            continue
        for run in read_study(path).runs:
            config = resolve_run(run).config
            batch = min(config.training.batch_size, 2)
            key = (config.data.dataset, config.model.label, size_text(config.data.image_size), f"batch {batch}")
            found.setdefault("-".join(key), config)
    return found


DISTINCT = distinct()


def test_the_files_have_every_architecture() -> None:
    names = {(config.model.name, config.model.label) for config in DISTINCT.values()}
    assert {name for name, _ in names} == {
        *("segformer", "deeplabv3", "deeplabv3plus", "hiera", "unet", "vit", "fcn"),
    }


SMALL = {
    name
    for name, config in DISTINCT.items()
    if max(config.data.input_size) <= 512 and config.model.label in ("b0", "b1", "b2", "vit")
}


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.sweep) for name in DISTINCT]
)
def test_a_step_of_every_model(name: str) -> None:
    """At its own ratio of sides, a quarter as long; model 5 with its batch of one image."""
    config = DISTINCT[name]
    num_classes = CLASSES[config.data.dataset]
    sides = config.data.input_size
    size = sides if math.prod(sides) <= 64 * 64 else (sides[0] // 4, sides[1] // 4)
    batch = min(config.training.batch_size, 2)
    names = [str(index) for index in range(num_classes)]
    random = config.model.model_copy(update={"pretrained": "none"})
    model: Any = build_model(random, names, 0, size).train()
    training = config.training.model_copy(update={"batch_size": batch, "global_batch_size": batch})
    check_model(config, plan_batches(training, 1), model)
    loss = build_loss(config.training.loss, num_classes, IGNORE_INDEX)
    optimizer = build_optimizer(model, config.training.optimizer, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator)
    labels = torch.randint(0, num_classes, (batch, *size), generator=generator, dtype=torch.uint8)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    value = loss.of_outputs(model(images, with_auxiliary=True), labels)
    value.backward()
    optimizer.step()
    assert math.isfinite(float(value.detach()))
    trained = [p for p in model.parameters() if p.requires_grad]
    moved = sum(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert moved >= 0.9 * len(trained)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trained)
