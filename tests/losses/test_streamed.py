"""Losses from coarse logits, a band of rows at a time, against the same losses of the enlarged logits."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.nn import functional

import segformer_spark.losses.streamed as streamed
from segformer_spark.config.schema import LossConfig
from segformer_spark.kernels.select import Setting
from segformer_spark.losses.build import build_loss

TYPES = get_args(LossConfig.model_fields["type"].annotation)
SIZE = (37, 50)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 10, 13, dtype=torch.float64, generator=generator) * 3
    labels = torch.randint(0, 3, (2, *SIZE), generator=generator, dtype=torch.uint8)  # class 3 is absent
    labels[0, :20] = 255
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 4.0]])
@pytest.mark.parametrize("kind", TYPES)
def test_value_and_gradient_are_those_of_the_enlarged_logits(
    kind: str, weights: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "_CACHED_VALUES", 1)
    agree(LossConfig(type=kind, class_weights=weights), "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", ["plain", "gpu"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["ce", "dice", "ce_dice"])
def test_the_arithmetic_of_gpus_has_the_same_value_and_gradient(
    kind: str, smoothing: float, weights: list[float] | None, kernels: Setting
) -> None:
    if smoothing == 0 or kind != "dice":
        agree(LossConfig(type=kind, class_weights=weights, label_smoothing=smoothing), kernels)  # type: ignore[arg-type]


def test_a_batch_without_a_label_has_no_loss_and_no_gradient() -> None:
    loss = build_loss(LossConfig(), 4, 255).double()
    loss.use_kernels("plain")
    logits, labels = data()
    value = loss.of_coarse(logits, torch.full_like(labels, 255))
    assert float(value) == 0
    assert not torch.autograd.grad(value, logits)[0].any()


def agree(config: LossConfig, kernels: Setting) -> None:
    loss = build_loss(config, 4, 255).double()
    loss.use_kernels(kernels)
    logits, labels = data()
    expected = loss(functional.interpolate(logits, size=SIZE, mode="bilinear"), labels)
    found = loss.of_coarse(logits, labels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_no_more_than_a_band_is_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_CACHED_VALUES", 1)
    logits, labels = data()
    shapes: list[torch.Size] = []

    def sums(enlarged: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        shapes.append(enlarged.shape)
        return enlarged.sum()[None]

    streamed.streamed_sums(logits, labels, sums).backward()
    assert {shape[2] for shape in shapes} == {8, 5}
    assert len(shapes) == 2 * 5
