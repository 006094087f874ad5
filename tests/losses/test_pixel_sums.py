"""Sums over as many pixels as training has, against fp64: fp32 adds ones up to 2^24 and no further."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segformer_spark.config.schema import LossConfig
from segformer_spark.losses import streamed
from segformer_spark.losses.build import build_loss
from segformer_spark.losses.dice import DiceLoss
from segformer_spark.losses.lovasz import LovaszSoftmaxLoss, jaccard_gradient
from tests.ranks import Group, run_on_ranks

IGNORE = 255
IMAGES, SIDE, CLASSES = 8, 512, 3


@pytest.mark.sweep
def test_the_overlap_of_17_million_pixels_in_one_band() -> None:
    side = 4200
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(1, side, side, generator=generator) < 0.001).long()
    assert int((labels == 0).sum()) > 17_000_000
    # Nearly certain, and right: every term is close to 1.
    logits = torch.stack([4 - 8 * labels, 8 * labels - 4], dim=1).float()
    p = 1 / (1 + np.exp(-8.0))
    counts = torch.bincount(labels.flatten()).numpy()
    overlap, predicted, truth = DiceLoss().sums(logits, labels).numpy()
    np.testing.assert_allclose(overlap, p * counts, rtol=1e-6)
    np.testing.assert_allclose(predicted, p * counts + (1 - p) * counts[::-1], rtol=1e-6)
    assert truth.tolist() == counts.tolist()


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["ce_dice"])
def test_64_million_values_in_a_band_as_on_a_gpu(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 4616  # 21.3 million pixels of three classes
    logits, labels = scene(1, side)
    loss = build_loss(LossConfig(type=kind), CLASSES, IGNORE)
    # The same band by band, where fp64 takes no more memory than fp32 does here.
    monkeypatch.setattr(streamed, "_CACHED_VALUES", streamed._GPU_VALUES)
    found = float(loss.of_coarse(logits, labels))
    monkeypatch.setattr(streamed, "_CACHED_VALUES", 2_000_000)
    assert found == pytest.approx(float(loss.of_coarse(logits.double(), labels)), rel=1e-6)


def scene(images: int, side: int) -> tuple[Tensor, Tensor]:
    """Quarter-size logits that are nearly certain, and labels that they mostly hit: large areas, as images have."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, CLASSES, (images, side // 64, side // 64), generator=generator)
    labels = functional.interpolate(coarse[:, None].float(), size=(side, side)).squeeze(1).to(torch.uint8)
    labels[:, : side // 16] = IGNORE
    truth = functional.interpolate(coarse[:, None].float(), size=(side // 4, side // 4)).squeeze(1).long()
    logits = 6 * functional.one_hot(truth, CLASSES).movedim(-1, 1).float()
    return logits + torch.randn(logits.shape, generator=generator), labels


def on_rank(group: Group, kind: str) -> tuple[float, NDArray[np.float32]]:
    """Value, and gradient of the own images as it is after the mean over ranks."""
    torch.set_num_threads(1)
    logits, labels = scene(IMAGES, SIDE)
    own = slice(group.rank * IMAGES // group.world_size, (group.rank + 1) * IMAGES // group.world_size)
    config = LossConfig(type=kind)  # type: ignore[arg-type]
    loss = build_loss(config, CLASSES, IGNORE, group.differentiable_sum)
    mine = logits[own].requires_grad_()
    value = loss.of_coarse(mine, labels[own])
    (gradient,) = torch.autograd.grad(value, mine)
    return value.item(), (gradient / group.world_size).numpy()


@pytest.mark.parametrize(
    ("kind", "world_sizes"),
    [
        ("ce_dice", (1, 4)),
        pytest.param("ce_dice", (2, 8), marks=pytest.mark.sweep),
        pytest.param("lovasz", (1, 2, 4, 8), marks=pytest.mark.sweep),
    ],
)
def test_ranks_agree_with_fp64_at_512_pixels(kind: Any, world_sizes: tuple[int, ...]) -> None:
    logits, labels = scene(IMAGES, SIDE)
    exact = logits.double().requires_grad_()
    value = build_loss(LossConfig(type=kind), CLASSES, IGNORE).double().of_coarse(exact, labels)
    (gradient,) = torch.autograd.grad(value, exact)
    for world_size in world_sizes:
        results = run_on_ranks(world_size, on_rank, kind)
        assert [value for value, _ in results] == pytest.approx([value.item()] * world_size, rel=1e-5)
        found = torch.from_numpy(np.concatenate([part for _, part in results])).double()
        assert float((found - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("pixels", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.sweep)])
def test_no_weight_of_lovasz_cancels(pixels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(pixels, generator=generator) < 0.3
    found = jaccard_gradient(truth)
    assert int((found == 0).sum()) == int((~truth[truth.nonzero()[-1] :]).sum()), "only where the overlap is used up"
    total = int(truth.sum())
    intersection, union = total - truth.cumsum(0).numpy(), total + (~truth).cumsum(0).numpy()
    jaccard = np.concatenate([[0.0], 1 - intersection / union])
    np.testing.assert_allclose(found.numpy(), np.diff(jaccard), rtol=0, atol=3e-16)
    assert float(found.sum()) == pytest.approx(1.0, rel=1e-12)


def test_lovasz_of_a_megapixel() -> None:
    logits, labels = scene(1, 1024)
    enlarged = functional.interpolate(logits, size=(1024, 1024), mode="bilinear")
    loss = LovaszSoftmaxLoss(ignore_index=IGNORE)
    single, double = enlarged.requires_grad_(), enlarged.detach().double().requires_grad_()
    values = [loss(x, labels.long()) for x in (single, double)]
    found, exact = (
        torch.autograd.grad(value, x)[0].double() for value, x in zip(values, (single, double), strict=True)
    )
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)
    assert float((found - exact).norm() / exact.norm()) < 1e-3, "ties are ordered differently"
