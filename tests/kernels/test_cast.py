from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segformer_spark.kernels.cast import Stacks, cast_together


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2), (3,), (2, 2), (4, 2), (5, 1, 3, 3))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


STACKS = Stacks([[torch.Size((3, 2))], [torch.Size((3,))], [torch.Size((2, 2)), torch.Size((4, 2))],
                 [torch.Size((5, 1, 3, 3))]])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_copies_and_gradients_are_those_of_single_casts(dtype: torch.dtype) -> None:
    own, other = parameters(), parameters()
    found = cast_together(own, STACKS, dtype)
    expected = [other[0].to(dtype), other[1].to(dtype), torch.cat([other[2], other[3]]).to(dtype), other[4].to(dtype)]
    # The second is not used: it has no gradient, as with single casts.
    for copies in (found, expected):
        sum(
            (copy.float() * (number + 1)).square().sum() for number, copy in enumerate(copies) if number != 1
        ).backward()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == dtype
    for ours, theirs in zip(own, other, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert ours.grad.dtype == torch.float32
            assert torch.equal(ours.grad, theirs.grad)


def test_nothing_is_copied_that_has_the_type() -> None:
    own = parameters(torch.bfloat16)
    found = cast_together(own, STACKS, torch.bfloat16)
    assert found[0] is own[0]
    assert found[3] is own[4]
