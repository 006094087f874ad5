from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from segformer_spark.models.upsample import project_and_add, widen


def torchs(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    out = functional.interpolate(maps.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return out.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(16, 32), (25, 33), (7, 5)])
def test_values_and_gradients_are_those_of_interpolate(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    finest, weight, bias = random(2, *size, 3), random(6, 3), random(6)
    coarse = [random(2, -(-size[0] // k), -(-size[1] // k), 6) for k in (2, 4, 8)]
    inputs = [finest, weight, bias, *coarse]
    ours = project_and_add(finest, weight, bias, [widen(level, size[1]) for level in coarse])
    theirs = functional.linear(finest, weight, bias) + sum(torchs(level, size) for level in coarse)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    for own, other in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)
