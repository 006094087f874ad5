from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segformer_spark.evaluation.sliding import sliding_logits, window_starts


@given(st.integers(1, 300), st.integers(32, 120), st.floats(0, 0.9))
def test_windows_cover_every_pixel_on_the_output_grid(length: int, window: int, overlap: float) -> None:
    starts = window_starts(length, window, overlap, 4)
    covered = set()
    for start in starts:
        assert start % 4 == 0
        covered |= set(range(start, min(start + window, length)))
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert starts[-1] < length


def stride_four(images: torch.Tensor) -> torch.Tensor:
    """A model that knows each place alone: the mean of 4 x 4 pixels."""
    padded = torch.nn.functional.pad(images, (0, -images.shape[-1] % 4, 0, -images.shape[-2] % 4))
    mean = torch.nn.functional.avg_pool2d(padded, 4)
    return torch.cat([mean, -mean], 1)


@settings(deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([32, 40]), st.sampled_from([0.0, 0.33, 0.7]))
def test_a_local_model_gives_what_one_pass_gives(height: int, width: int, window: int, overlap: float) -> None:
    images = torch.rand(2, 3, height, width, dtype=torch.float64).float()
    expected = stride_four(images)
    torch.testing.assert_close(sliding_logits(stride_four, images, window, overlap, 4), expected)


def test_overlaps_are_averaged() -> None:
    calls = []

    def counting(images: torch.Tensor) -> torch.Tensor:
        calls.append(images.shape)
        return torch.full((1, 1, images.shape[-2] // 4, images.shape[-1] // 4), float(len(calls)))

    out = sliding_logits(counting, torch.zeros(1, 3, 32, 48), 32, 0.5, 4)
    assert len(calls) == 2
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([1.0] * 4 + [1.5] * 4 + [2.0] * 4))


def test_gaussian_weights_join_windows_as_the_formula_says() -> None:
    """nnU-Net's: a Gaussian of an eighth of the window around its middle."""
    values = iter((1.0, 2.0))

    def constant(images: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, images.shape[-2] // 4, images.shape[-1] // 4), next(values))

    out = sliding_logits(constant, torch.zeros(1, 3, 32, 48), 32, 0.5, 4, weights="gaussian")[0, 0]
    place = torch.arange(8, dtype=torch.float64) - 3.5
    bell = torch.exp(-0.5 * place**2)
    weight = (bell[:, None] * bell).clamp(min=1e-3)
    first, second = torch.zeros(8, 12, dtype=torch.float64), torch.zeros(8, 12, dtype=torch.float64)
    first[:, :8], second[:, 4:] = weight, weight
    torch.testing.assert_close(out.double(), (first + 2 * second) / (first + second), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "gaussian"])
def test_weights_change_nothing_where_windows_agree(kind: Any) -> None:
    images = torch.rand(1, 3, 70, 90)
    torch.testing.assert_close(
        sliding_logits(stride_four, images, 32, 0.5, 4, weights=kind), stride_four(images), rtol=1e-5, atol=1e-6
    )
