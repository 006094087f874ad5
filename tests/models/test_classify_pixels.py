from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import segformer_spark.models.classify_pixels as module
from segformer_spark.models.classify_pixels import classify_pixels

PIXELS, WIDTH, CLASSES = 700, 24, 5


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((PIXELS, WIDTH), (WIDTH,), (WIDTH,), (CLASSES, WIDTH), (CLASSES,))
    values = [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]
    values[0] = values[0] * 3 + 10
    return [value.requires_grad_() for value in values]


def layer_by_layer(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *classifier: Any) -> torch.Tensor:
    normed = nn.functional.batch_norm(values, None, None, weight, bias, training=True, eps=1e-5)
    return nn.functional.linear(normed.relu(), *classifier)


@pytest.mark.parametrize("chunk", [97, 10**6])
def test_values_and_gradients_are_those_of_the_layers(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED_VALUES", chunk * WIDTH)
    own = inputs()
    logits, statistics = classify_pixels(own[0].clone(), *own[1:], eps=1e-5, dropout=0.0, reduce=None)
    expected = layer_by_layer(*own)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(statistics.mean, own[0].mean(0))
    torch.testing.assert_close(statistics.variance, own[0].var(0, correction=0))
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(logits, own, direction), torch.autograd.grad(expected, own, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_leaves_out_that_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(3)
    kept = torch.empty(400, 512, dtype=torch.bool)
    module._draw(kept, round(rate * 2**16))
    deviation = math.sqrt(rate * (1 - rate) / kept.numel())
    assert abs(1 - kept.double().mean() - rate) < 5 * deviation
    shares = 1 - kept.double().mean(0)
    assert shares.std() == pytest.approx(math.sqrt(rate * (1 - rate) / 400), rel=0.2), "columns are independent"
    agreement = (kept[:, ::2] == kept[:, 1::2]).double().mean()
    assert agreement == pytest.approx(rate**2 + (1 - rate) ** 2, abs=0.01), "neighbours are independent"


def test_gradients_follow_what_dropout_kept() -> None:
    """With the same draws the function is smooth: its gradient is that of differences."""
    own = inputs()

    def value(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return classify_pixels(values.clone(), *own[1:], eps=1e-5, dropout=0.3, reduce=None)[0].square().sum()

    (gradient,) = torch.autograd.grad(value(own[0]), own[0])
    step = torch.randn_like(own[0]) * 1e-6
    with torch.no_grad():
        difference = value(own[0] + step) - value(own[0] - step)
    assert float(difference) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-4)


def test_the_gradient_takes_the_place_of_the_values_and_a_second_one_is_refused() -> None:
    own = inputs()
    values = own[0].clone()
    loss = classify_pixels(values, *own[1:], eps=1e-5, dropout=0.1, reduce=None)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, values, retain_graph=True)
    assert gradient.data_ptr() == values.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, values)


def test_kept_values_are_scaled() -> None:
    own = inputs()
    whole = classify_pixels(*own, eps=1e-5, dropout=0.0, reduce=None)[0]
    drawn = torch.stack([classify_pixels(*own, eps=1e-5, dropout=0.2, reduce=None)[0] for _ in range(300)])
    torch.testing.assert_close(drawn.mean(0).mean(0), whole.mean(0), rtol=0.02, atol=0.02)
    assert not torch.equal(drawn[0], drawn[1])


def test_dropout_close_to_one_leaves_something() -> None:
    logits = classify_pixels(*inputs(), eps=1e-5, dropout=0.9999999, reduce=None)[0]
    assert torch.isfinite(logits).all()
