"""The residual sum and the layer norm after it, as one operation each way.

The branch comes without the bias of the linear layer that made it: it is added here, and its gradient, a sum over all
tokens, is taken while the tokens are at hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.kernels.cost import Cost, nbytes
from segformer_spark.kernels.registry import jit, register, tl

_VALUES = 2048
"""Values of a tile, tokens times channels."""

_PROGRAMS = 216
"""Of the backward kernel, which walk over all tiles: two for each of an A100's processors."""


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    tokens, branch, branch_bias, scale, weight, bias, total, normed, mean, inverse_std, N, C, per_image, eps,
    ADDS: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, CHANNELS)
    inside, own = rows < N, cols < C
    known = inside[:, None] & own[None, :]
    start = tl.program_id(0).to(tl.int64) * ROWS * C  # 64 bits once, 32 within a tile
    place = tl.arange(0, ROWS)[:, None] * C + cols[None, :]
    x = tl.load(tokens + start + place, mask=known, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(branch + start + place, mask=known, other=0.0).to(tl.float32)
        added += tl.load(branch_bias + cols, mask=own, other=0.0).to(tl.float32)[None, :]
        if SCALED:
            added = added * tl.load(scale + rows // per_image, mask=inside, other=0.0)[:, None]
        stored = (x + added).to(total.dtype.element_ty)
        tl.store(total + start + place, stored, mask=known)
        x = tl.where(known, stored.to(tl.float32), 0.0)
    center = tl.sum(x, 1) / C
    x = tl.where(known, x - center[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / C + eps)
    y = x * inverse[:, None] * tl.load(weight + cols, mask=own, other=0.0)[None, :]
    y += tl.load(bias + cols, mask=own, other=0.0)[None, :]
    tl.store(normed + start + place, y, mask=known)
    tl.store(mean + rows, center, mask=inside)
    tl.store(inverse_std + rows, inverse, mask=inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    of_normed, of_total, total, mean, inverse_std, weight, scale, of_tokens, of_branch, sums, N, C, per_image,
    ADDED: tl.constexpr, SCALED: tl.constexpr, BRANCH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, CHANNELS)
    own = cols < C
    factor = tl.load(weight + cols, mask=own, other=0.0)[None, :]
    of_weight = tl.zeros([CHANNELS], tl.float32)
    of_bias = tl.zeros([CHANNELS], tl.float32)
    of_branch_bias = tl.zeros([CHANNELS], tl.float32)
    place = tl.arange(0, ROWS)[:, None] * C + cols[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = rows < N
        known = inside[:, None] & own[None, :]
        start = tl.cast(tile, tl.int64) * ROWS * C
        grad = tl.load(of_normed + start + place, mask=known, other=0.0).to(tl.float32)
        x = tl.load(total + start + place, mask=known, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_std + rows, mask=inside, other=0.0)[:, None]
        x = tl.where(known, (x - tl.load(mean + rows, mask=inside, other=0.0)[:, None]) * inverse, 0.0)
        of_weight += tl.sum(grad * x, 0)
        of_bias += tl.sum(grad, 0)
        inner = grad * factor
        inner = (inner - (x * tl.sum(inner * x, 1)[:, None] + tl.sum(inner, 1)[:, None]) / C) * inverse
        if ADDED:
            inner += tl.load(of_total + start + place, mask=known, other=0.0).to(tl.float32)
        tl.store(of_tokens + start + place, inner, mask=known)
        if SCALED:
            inner = inner * tl.load(scale + rows // per_image, mask=inside, other=0.0)[:, None]
        if BRANCH:
            tl.store(of_branch + start + place, inner, mask=known)
        of_branch_bias += tl.sum(tl.where(known, inner, 0.0), 0)
    out = sums + tl.program_id(0) * 3 * C + cols
    tl.store(out, of_weight, mask=own)
    tl.store(out + C, of_bias, mask=own)
    tl.store(out + 2 * C, of_branch_bias, mask=own)


def _tile(channels: int) -> dict[str, int]:
    block = max(16, 1 << (channels - 1).bit_length())
    return {"ROWS": max(1, _VALUES // block), "CHANNELS": block}


def _programs(tokens: Tensor) -> int:
    return min(_PROGRAMS, -(-len(tokens) // _tile(tokens.shape[1])["ROWS"]))


def _fused_forward(tokens: Tensor, branch: Tensor, branch_bias: Tensor, scale: Tensor | None, weight: Tensor,
                   bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    total, normed, mean, inverse_std = _shapes_forward(tokens, branch, branch_bias, scale, weight)
    tile = _tile(tokens.shape[1])
    per_image = len(tokens) if scale is None else len(tokens) // len(scale)
    _forward_kernel[(-(-len(tokens) // tile["ROWS"]),)](
        tokens, branch, branch_bias, weight if scale is None else scale, weight, bias, total, normed, mean, inverse_std,
        *tokens.shape, per_image, eps, ADDS=True, SCALED=scale is not None, **tile,
    )  # fmt: skip
    return total, normed, mean, inverse_std


def _fused_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
                ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    normed, mean, inverse_std = _shapes_norm(tokens, weight, bias, eps, dtype)
    tile = _tile(tokens.shape[1])
    _forward_kernel[(-(-len(tokens) // tile["ROWS"]),)](
        tokens, tokens, weight, weight, weight, bias, tokens, normed, mean, inverse_std, *tokens.shape, 1, eps,
        ADDS=False, SCALED=False, **tile,
    )  # fmt: skip
    return normed, mean, inverse_std


def _fused_backward(of_normed: Tensor, of_total: Tensor | None, total: Tensor, mean: Tensor, inverse_std: Tensor,
                    weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_tokens, of_branch, sums = _shapes_backward(of_normed, of_total, total, mean, inverse_std, weight, scale)
    tile, apart = _tile(total.shape[1]), _is_apart(of_normed, total, scale)
    per_image = len(total) if scale is None else len(total) // len(scale)
    _backward_kernel[(len(sums),)](
        of_normed, of_normed if of_total is None else of_total, total, mean, inverse_std, weight,
        weight if scale is None else scale, of_tokens, of_branch if apart else of_tokens, sums, *total.shape, per_image,
        ADDED=of_total is not None, SCALED=scale is not None, BRANCH=apart, **tile,
    )  # fmt: skip
    return of_tokens, of_branch, sums


def _plain_forward(tokens: Tensor, branch: Tensor, branch_bias: Tensor, scale: Tensor | None, weight: Tensor,
                   bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    added = branch.to(weight.dtype) + branch_bias.to(weight.dtype)
    if scale is not None:
        added = (added.view(len(scale), -1, added.shape[1]) * scale.to(weight.dtype).view(-1, 1, 1)).view(added.shape)
    total = (tokens.to(weight.dtype) + added).to(tokens.dtype)
    normed, mean, inverse_std = _plain_norm(total, weight, bias, eps, branch.dtype)
    return total, normed, mean, inverse_std


def _plain_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
                ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = tokens.to(weight.dtype)
    normed, mean, inverse_std = torch.native_layer_norm(wide, wide.shape[-1:], weight, bias, eps)
    return normed.to(dtype), mean.flatten(), inverse_std.flatten()


def _plain_backward(of_normed: Tensor, of_total: Tensor | None, total: Tensor, mean: Tensor, inverse_std: Tensor,
                    weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide, statistics = total.to(weight.dtype), (mean[:, None], inverse_std[:, None])
    of_tokens, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
        of_normed.to(weight.dtype), wide, wide.shape[-1:], *statistics, weight, weight, [True, True, True]
    )
    of_tokens = of_tokens if of_total is None else of_tokens + of_total.to(weight.dtype)
    of_branch = of_tokens
    if scale is not None:
        factor = scale.to(weight.dtype).view(-1, 1, 1)
        of_branch = (of_tokens.view(len(scale), -1, of_tokens.shape[1]) * factor).view(of_tokens.shape)
    sums = torch.stack([of_weight, of_bias, of_branch.sum(0)])[None]
    apart = _is_apart(of_normed, total, scale)
    return of_tokens.to(total.dtype), of_branch.to(of_normed.dtype) if apart else of_normed.new_empty(0), sums


def _shapes_backward(of_normed: Tensor, of_total: Tensor | None, total: Tensor, mean: Tensor, inverse_std: Tensor,
                     weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    apart = _is_apart(of_normed, total, scale)
    of_branch = torch.empty_like(of_normed) if apart else of_normed.new_empty(0)
    return torch.empty_like(total), of_branch, weight.new_empty(_programs(total), 3, total.shape[1])


def _is_apart(of_normed: Tensor, total: Tensor, scale: Tensor | None) -> bool:
    """Whether the branch's gradient is another tensor than that of the tokens."""
    return scale is not None or total.dtype != of_normed.dtype


def _shapes_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
                 ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mean, inverse_std = (weight.new_empty(len(tokens)) for _ in range(2))
    return torch.empty_like(tokens, dtype=dtype), mean, inverse_std


def _shapes_forward(tokens: Tensor, branch: Tensor, branch_bias: Tensor, scale: Tensor | None, weight: Tensor, *_: Any
                    ) -> tuple[Tensor, ...]:  # fmt: skip
    statistics = (weight.new_empty(len(tokens)) for _ in range(2))
    return torch.empty_like(tokens), torch.empty_like(branch), *statistics


def _cost_backward(of_normed: Tensor, of_total: Tensor | None, total: Tensor, mean: Tensor, inverse_std: Tensor,
                   weight: Tensor, scale: Tensor | None) -> Cost:  # fmt: skip
    apart = _is_apart(of_normed, total, scale)
    read = nbytes(of_normed, of_total, total, mean, inverse_std, weight, scale)
    sums = _programs(total) * 3 * weight.nbytes
    return Cost(0.0, read, total.nbytes + (of_normed.nbytes if apart else 0) + sums)


register(
    "add_norm(Tensor tokens, Tensor branch, Tensor branch_bias, Tensor? scale, Tensor weight, Tensor bias, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    plain=_plain_forward,
    fused=_fused_forward,
    shapes=_shapes_forward,
    cost=lambda tokens, branch, *rest: Cost(
        0.0, nbytes(tokens, branch, *rest), nbytes(tokens, branch) + 8 * len(tokens)
    ),
)
register(
    "layer_norm(Tensor tokens, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    plain=_plain_norm,
    fused=_fused_norm,
    shapes=_shapes_norm,
    cost=lambda tokens, weight, bias, eps, dtype: Cost(
        0.0, nbytes(tokens, weight, bias), tokens.numel() * dtype.itemsize + 8 * len(tokens)
    ),
)
register(
    "add_norm_backward(Tensor of_normed, Tensor? of_total, Tensor total, Tensor mean, Tensor inverse_std, "
    "Tensor weight, Tensor? scale) -> (Tensor, Tensor, Tensor)",
    plain=_plain_backward,
    fused=_fused_backward,
    shapes=_shapes_backward,
    cost=_cost_backward,
)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        branch: Tensor,
        branch_bias: Tensor,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        total, normed, mean, inverse_std = torch.ops.segformer_spark.add_norm(
            tokens, branch, branch_bias, scale, weight, bias, eps
        )
        ctx.save_for_backward(total, mean, inverse_std, weight, scale)
        ctx.dtype = branch_bias.dtype
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        of_total, of_normed = grads
        of_tokens, of_branch, sums = torch.ops.segformer_spark.add_norm_backward(
            of_normed.contiguous(), of_total, *ctx.saved_tensors
        )
        of_weight, of_bias, of_branch_bias = sums.sum(0).unbind()
        of_branch = of_branch if of_branch.numel() else of_tokens
        return of_tokens, of_branch, of_branch_bias.to(ctx.dtype), None, of_weight, of_bias, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normed, mean, inverse_std = torch.ops.segformer_spark.layer_norm(tokens, weight, bias, eps, dtype)
        ctx.save_for_backward(tokens, mean, inverse_std, weight)
        result: Tensor = normed
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        of_tokens, _, sums = torch.ops.segformer_spark.add_norm_backward(
            grads[0].contiguous(), None, *ctx.saved_tensors, None
        )
        of_weight, of_bias, _ = sums.sum(0).unbind()
        return of_tokens, of_weight, of_bias, None, None


NORMS = ("add_norm", "layer_norm", "add_norm_backward")
"""The operations of `fused_add_norm` and `fused_norm`."""


def fused_add_norm(
    tokens: Tensor,
    branch: Tensor,
    branch_bias: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """total = tokens + scale * (branch + branch_bias), and the layer norm of it (Ba et al. 2016, equation 4).

    Args:
        tokens: (N, C), the residual stream of B images, one after the other.
        branch: the same shape; its type is that of the normalised tokens.
        branch_bias: (C,).
        scale: (B,), stochastic depth's factor of each image; None for 1.
        weight, bias: (C,), the norm's, fp32.

    Returns:
        The sum in the type of `tokens`, and its norm in that of `branch`; statistics are fp32.
    """
    result: tuple[Tensor, Tensor] = _AddNorm.apply(tokens, branch, branch_bias, scale, weight, bias, eps)
    return result


def fused_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The layer norm of tokens (N, C) in `dtype`, with fp32 weights and statistics."""
    result: Tensor = _Norm.apply(tokens, weight, bias, eps, dtype)
    return result


def plain_add_norm(
    tokens: Tensor, branch: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`fused_add_norm` of a branch with its bias, in plain torch; weights and factors in the type of `tokens`, as
    torch's norm wants one type."""
    branch, dtype = branch.to(tokens.dtype), branch.dtype
    if scale is None:
        total = tokens + branch
    else:
        shape = (len(scale), -1, tokens.shape[1])
        factor = scale.to(tokens.dtype).view(-1, 1, 1)
        total = torch.addcmul(tokens.view(shape), branch.view(shape), factor).view(tokens.shape)
    return total, plain_norm(total, weight, bias, eps, dtype)


def plain_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`fused_norm` in plain torch."""
    own = (weight.to(tokens.dtype), bias.to(tokens.dtype))
    return functional.layer_norm(tokens, tokens.shape[-1:], *own, eps).to(dtype)
