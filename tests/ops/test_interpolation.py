from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from segformer_spark.ops.interpolation import bands, enlarge_rows, enlarged_bands, interpolation_matrix, source_rows

lengths = st.integers(1, 40)


def torchs(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@settings(deadline=None)
@given(lengths, lengths, st.integers(1, 90), st.integers(1, 90), st.integers(1, 50))
def test_bands_are_rows_of_torchs_interpolation(h: int, w: int, height: int, width: int, band: int) -> None:
    maps = torch.randn(2, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torchs(maps, (height, width))
    for rows in bands(height, band):
        needed = source_rows(h, height, rows.start, rows.stop)
        found = enlarge_rows(maps[..., needed, :], h, rows, (height, width))
        torch.testing.assert_close(found, expected[:, :, rows], rtol=1e-12, atol=1e-12)


def test_a_band_needs_few_rows() -> None:
    needed = source_rows(128, 512, 64, 96)
    assert needed == slice(15, 25)


def test_gradients_are_torchs() -> None:
    maps = torch.randn(1, 2, 7, 9, dtype=torch.float64)
    direction = torch.randn(1, 2, 20, 31, dtype=torch.float64)
    gradients = []
    for enlarge in (lambda m: torchs(m, (20, 31)), lambda m: enlarge_rows(m, 7, slice(0, 20), (20, 31))):
        leaf = maps.clone().requires_grad_()
        enlarge(leaf).backward(direction)
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_has_the_type_asked_for_even_under_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        matrix = interpolation_matrix(5, 11, torch.device("cpu"), dtype)
    assert matrix.dtype == dtype
    assert not matrix.is_inference(), "training may ask for the same matrix later"
    torch.testing.assert_close(matrix.float().sum(1), torch.ones(11), rtol=0.01, atol=0)


def test_bands_are_the_enlarged_map() -> None:
    logits = torch.randn(3, 20, 11)
    whole = torch.cat([band for _, band in enlarged_bands(logits, (80, 44))], 1)
    expected = torch.nn.functional.interpolate(logits[None], size=(80, 44), mode="bilinear")[0]
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
