"""Losses against independent float64 formulas, torch's own, finite differences, and other divisions of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.config.schema import LossConfig
from segformer_spark.errors import ConfigError
from segformer_spark.losses.build import build_loss
from tests.ranks import Group, run_on_ranks

CLASSES, IGNORE = 4, 255
FORMULAS = ["ce", "dice", "ce_dice", "focal", "focal_dice"]
TYPES = [*FORMULAS, "lovasz", "ohem", "boundary_ce"]
WEIGHTS = [0.5, 2.0, 1.0, 3.0]


def batch(size: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits and labels; class 3 is absent, and the share of ignored pixels differs between images."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, CLASSES, size, size, generator=generator, dtype=dtype) * 2
    labels = torch.randint(0, CLASSES - 1, (4, size, size), generator=generator)
    for image in range(4):
        labels[image, :image] = IGNORE
    return logits, labels


def reference(config: LossConfig, logits: Tensor, labels: Tensor) -> float:
    """The formulas, pixel by pixel in NumPy float64."""
    x, y = logits.double().numpy().transpose(0, 2, 3, 1).reshape(-1, CLASSES), labels.numpy().ravel()
    x, y = x[y != IGNORE], y[y != IGNORE]
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    w = np.array(config.class_weights or [1.0] * CLASSES)
    eps = config.label_smoothing
    log_p = np.log(p)
    ce = ((1 - eps) * -w[y] * log_p[np.arange(len(y)), y] - eps / CLASSES * (w * log_p).sum(1)).sum() / w[y].sum()
    own = p[np.arange(len(y)), y]
    focal = (w[y] * (1 - own) ** config.focal_gamma * -np.log(own)).sum() / w[y].sum()
    terms, weights = [], []
    for c in range(CLASSES):
        if (y == c).any():
            top = 2 * p[y == c, c].sum() + config.dice_smooth
            terms.append(1 - top / (p[:, c].sum() + (y == c).sum() + config.dice_smooth))
            weights.append(w[c])
    dice = np.average(terms, weights=weights)
    total = config.ce_weight * ce + config.dice_weight * dice
    focal_dice = config.ce_weight * focal + config.dice_weight * dice
    values = {"ce": ce, "dice": dice, "focal": focal, "ce_dice": total, "focal_dice": focal_dice}
    return float(values[config.type])


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_follow_the_formula(kind: Any, class_weights: list[float] | None, smoothing: float) -> None:
    if smoothing and kind not in ("ce", "ce_dice"):
        pytest.skip("label smoothing is for cross-entropy")
    config = LossConfig(
        type=kind,
        class_weights=class_weights,
        label_smoothing=smoothing,
        ce_weight=0.3,
        dice_weight=0.7,
        focal_gamma=1.5,
    )
    logits, labels = batch()
    value = build_loss(config, CLASSES, IGNORE).double()(logits, labels)
    assert float(value) == pytest.approx(reference(config, logits, labels), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_that_of_torch(smoothing: float) -> None:
    logits, labels = batch()
    config = LossConfig(type="ce", class_weights=WEIGHTS, label_smoothing=smoothing)
    expected = functional.cross_entropy(
        logits, labels, torch.tensor(WEIGHTS, dtype=torch.float64), ignore_index=IGNORE, label_smoothing=smoothing
    )
    torch.testing.assert_close(build_loss(config, CLASSES, IGNORE).double()(logits, labels), expected)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_against_finite_differences(kind: Any, gamma: float) -> None:
    loss = build_loss(LossConfig(type=kind, class_weights=WEIGHTS, focal_gamma=gamma), CLASSES, IGNORE).double()
    logits, labels = batch(3)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),))


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, labels = batch()
    focal = build_loss(LossConfig(type="focal", focal_gamma=0.0), CLASSES, IGNORE)(logits, labels)
    torch.testing.assert_close(focal, build_loss(LossConfig(type="ce"), CLASSES, IGNORE)(logits, labels))


@pytest.mark.parametrize("kind", TYPES)
def test_ignored_pixels_have_no_say(kind: Any) -> None:
    loss = build_loss(LossConfig(type=kind), CLASSES, IGNORE)
    logits, labels = batch()
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert logits.grad is not None
    assert (logits.grad[ignored] == 0).all()
    changed = logits.detach().clone()
    changed[ignored] = 1e4
    torch.testing.assert_close(loss(changed, labels), value.detach())


@pytest.mark.parametrize("kind", TYPES)
def test_nothing_but_ignored_pixels_is_zero_with_zero_gradient(kind: Any) -> None:
    logits = batch(dtype=torch.float32)[0].requires_grad_()
    value = build_loss(LossConfig(type=kind), CLASSES, IGNORE)(logits, torch.full((4, 5, 5), IGNORE))
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", [1.0, 60.0, 1e4])
def test_finite_under_bf16(kind: Any, scale: float) -> None:
    logits, labels = batch(dtype=torch.float32)
    logits = (logits * scale).bfloat16().requires_grad_()
    loss = build_loss(LossConfig(type=kind, focal_gamma=0.5), CLASSES, IGNORE)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, labels.byte())
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_perfect_prediction() -> None:
    _, labels = batch()
    logits = functional.one_hot(labels.where(labels != IGNORE, 0), CLASSES).movedim(-1, 1).double() * 100
    for kind in TYPES:
        assert float(build_loss(LossConfig(type=kind), CLASSES, IGNORE)(logits, labels)) < 1e-6  # type: ignore[arg-type]


def gradients_on_rank(group: Group, kind: str, counts: list[int]) -> dict[str, Any]:
    """Value and gradient as the engine sees them: each rank's backward, then the mean over ranks."""
    logits, labels = batch()
    start = sum(counts[: group.rank])
    part = slice(start, start + counts[group.rank])
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    config = LossConfig(type=kind, class_weights=WEIGHTS)  # type: ignore[arg-type]
    loss = build_loss(config, CLASSES, IGNORE, group.differentiable_sum).double()
    value = loss(logits[part] * weight, labels[part])
    value.backward()
    assert weight.grad is not None
    return {"value": float(value), "gradient": float(group.sum(weight.grad)) / group.world_size}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("counts", [[2, 2], [1, 1, 2], [3, 1]])
def test_ranks_together_give_the_loss_and_gradient_of_the_whole_batch(kind: Any, counts: list[int]) -> None:
    logits, labels = batch()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    whole = build_loss(LossConfig(type=kind, class_weights=WEIGHTS), CLASSES, IGNORE).double()(logits * weight, labels)
    whole.backward()
    assert weight.grad is not None
    for result in run_on_ranks(len(counts), gradients_on_rank, kind, counts):
        assert result["value"] == pytest.approx(float(whole), rel=1e-12)
        assert result["gradient"] == pytest.approx(float(weight.grad), rel=1e-12)


def test_wrong_number_of_class_weights() -> None:
    with pytest.raises(ConfigError, match="4 entries, there are 3 classes"):
        build_loss(LossConfig(class_weights=WEIGHTS), 3, IGNORE)
