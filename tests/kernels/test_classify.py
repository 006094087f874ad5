"""The end of the head against torch's layers, on one and on several ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.distributed.process_group import Group
from segformer_spark.kernels.classify_plain import batch_statistics
from segformer_spark.kernels.classify_plain import plain_classify as classify
from tests.ranks import run_on_ranks

PIXELS, WIDTH, CLASSES = 60, 16, 5


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((PIXELS, WIDTH), (WIDTH,), (WIDTH,), (CLASSES, WIDTH), (CLASSES,))
    values = [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]
    values[0] = values[0] * 3 + 10
    return [value.requires_grad_() for value in values]


def layer_by_layer(values: Tensor, weight: Tensor, bias: Tensor, *classifier: Any) -> Tensor:
    normed = functional.batch_norm(values, None, None, weight, bias, training=True, eps=1e-5)
    return functional.linear(normed.relu(), *classifier)


def gradients(logits: Tensor, own: list[Tensor]) -> tuple[Tensor, ...]:
    direction = torch.randn(PIXELS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.autograd.grad(logits, own, direction[: len(logits)].to(logits.dtype))


def test_values_and_gradients_are_those_of_the_layers() -> None:
    own = inputs()
    logits, statistics = classify(*own, eps=1e-5, dropout=0.0, reduce=None)
    expected = layer_by_layer(*own)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(statistics.mean, own[0].mean(0))
    torch.testing.assert_close(statistics.variance, own[0].var(0, correction=0))
    for ours, theirs in zip(gradients(logits, own), gradients(expected, own), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_together_compute_one_batch(world_size: int) -> None:
    """In fp32, each rank with its share of the pixels: one collective each way."""
    own = inputs()
    expected = layer_by_layer(*own)
    wanted = gradients(expected, own)
    size = PIXELS // world_size
    results = run_on_ranks(world_size, share_of_the_batch, size)
    for rank, (logits, parts, collectives) in enumerate(results):
        rows = slice(rank * size, (rank + 1) * size)
        np.testing.assert_allclose(logits, expected[rows].detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(parts[0], wanted[0][rows], rtol=1e-3, atol=1e-4)
        assert collectives == 2
    for index, theirs in enumerate(wanted[1:], start=1):
        np.testing.assert_allclose(sum(result[1][index] for result in results), theirs, rtol=1e-3, atol=1e-3)


def share_of_the_batch(group: Group, size: int) -> tuple[Any, list[Any], int]:
    own = inputs(torch.float32)
    rows = slice(group.rank * size, (group.rank + 1) * size)
    own[0] = own[0].detach()[rows].requires_grad_()
    calls = []

    def reduce(value: Tensor) -> Tensor:
        calls.append(value)
        return group.sum(value)

    logits, _ = classify(*own, eps=1e-5, dropout=0.0, reduce=reduce)
    direction = torch.randn(PIXELS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = torch.autograd.grad(logits, own, direction[rows].float())
    # As arrays: tensors travel as open files, which end with this process.
    return logits.detach().numpy().copy(), [one.numpy().copy() for one in found], len(calls)


def test_gradients_follow_what_dropout_kept() -> None:
    """With the same draws the function is smooth: its gradient is that of differences."""
    own = inputs()

    def value(values: Tensor) -> Tensor:
        torch.manual_seed(7)
        return classify(values, *own[1:], eps=1e-5, dropout=0.3, reduce=None)[0].square().sum()

    found = torch.autograd.grad(value(own[0]), own[0])[0]
    step = torch.randn_like(own[0]) * 1e-6
    with torch.no_grad():
        difference = value(own[0] + step) - value(own[0] - step)
    assert float(difference) == pytest.approx(2 * float((found * step).sum()), rel=1e-4)


def test_the_classifiers_gradient_counts_what_dropout_kept_and_scaled() -> None:
    own = inputs()
    torch.manual_seed(7)
    logits = classify(*own, eps=1e-5, dropout=0.3, reduce=None)[0]
    weight, bias = (torch.autograd.grad(logits.sum(), one, retain_graph=True)[0] for one in (own[3], own[4]))
    # The logits are linear in the classifier: their sum is the product of weights and gradient.
    product = (weight * own[3]).sum() + (bias * own[4]).sum()
    torch.testing.assert_close(product, logits.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_statistics_far_from_zero_are_exact(dtype: torch.dtype) -> None:
    """A mean 30 times the deviation, against fp64."""
    generator = torch.Generator().manual_seed(1)
    values = (torch.randn(20_000, 4, generator=generator) + torch.tensor([0.0, 3.0, 10.0, 30.0])).to(dtype)
    found = batch_statistics(values, None)
    assert found.mean.dtype == found.variance.dtype == torch.float32
    torch.testing.assert_close(found.mean.double(), values.double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance.double(), values.double().var(0, correction=0), rtol=2e-3, atol=0)
    assert math.isclose(float(found.count), 20_000)
