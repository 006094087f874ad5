from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from segformer_spark.models.recomputed import mix_ffn, project_and_reduce

WIDTH = 6


def maps(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, height, width, WIDTH, dtype=torch.float64).requires_grad_()


def random_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(WIDTH, eps=1e-5).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def compare(ours: torch.Tensor, theirs: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(theirs)
    for own, other in zip(
        torch.autograd.grad(ours, leaves, direction, retain_graph=True),
        torch.autograd.grad(theirs, leaves, direction, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_mix_ffn(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values, norm = maps(*size), random_norm()
    first, second = nn.Linear(WIDTH, 4 * WIDTH).double(), nn.Linear(4 * WIDTH, WIDTH).double()
    conv = nn.Conv2d(4 * WIDTH, 4 * WIDTH, 3, 1, 1, groups=4 * WIDTH).double()
    hidden = conv(first(norm(values)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    leaves = [values, *(p for m in (norm, first, conv, second) for p in m.parameters())]
    compare(mix_ffn(values, norm, first, conv, second), second(functional.gelu(hidden)), leaves)


@pytest.mark.parametrize(("size", "ratio"), [((8, 8), 4), ((9, 7), 2)])
def test_project_and_reduce(size: tuple[int, int], ratio: int) -> None:
    torch.manual_seed(0)
    values, norm, query = maps(*size), random_norm(), nn.Linear(WIDTH, WIDTH).double()
    conv = nn.Conv2d(WIDTH, WIDTH, ratio, ratio).double()
    queries, reduced = project_and_reduce(values, norm, query, conv)
    leaves = [values, *(p for m in (norm, query, conv) for p in m.parameters())]
    expected = conv(norm(values).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert reduced.shape == expected.shape
    ours, theirs = (
        torch.cat([a.flatten(), b.flatten()]) for a, b in ((queries, reduced), (query(norm(values)), expected))
    )
    compare(ours, theirs, leaves)


def test_little_is_kept() -> None:
    """The input, the hidden map and the norm's two numbers per pixel: 5 values per token and channel of 14."""
    values = torch.randn(1, 16, 16, 64, requires_grad=True)
    first, second = nn.Linear(64, 256), nn.Linear(256, 64)
    conv = nn.Conv2d(256, 256, 3, 1, 1, groups=256)
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        mix_ffn(values, nn.LayerNorm(64), first, conv, second)
    weights = 4 * sum(p.numel() for m in (first, conv, second) for p in m.parameters()) + 2 * 64 * 4
    assert sum(kept.values()) <= 5 * values.numel() * 4 + 2 * 256 * 4 + weights


def test_bf16_autocast_keeps_the_residual_path_in_fp32() -> None:
    torch.manual_seed(0)
    values, norm = torch.randn(1, 4, 4, WIDTH, requires_grad=True), nn.LayerNorm(WIDTH)
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    conv = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)
    exact = mix_ffn(values, norm, first, conv, second)
    with torch.autocast("cpu", torch.bfloat16):
        short = mix_ffn(values, norm, first, conv, second)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), exact, rtol=0.05, atol=0.05)
    short.float().sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == first.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_weights_with_fp32_maps(dtype: torch.dtype) -> None:
    """As under fp16 in DeepSpeed: the model is in fp16, and autocast on a GPU computes norms in fp32."""
    torch.manual_seed(0)
    values, norm = torch.randn(1, 4, 4, WIDTH, requires_grad=True), nn.LayerNorm(WIDTH)
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    conv, reduce = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 2, 2)
    exact = mix_ffn(values, norm, first, conv, second), *project_and_reduce(values, norm, first, reduce)
    for module in (norm, first, second, conv, reduce):
        module.to(dtype)
    short = mix_ffn(values, norm, first, conv, second), *project_and_reduce(values, norm, first, reduce)
    for one, other in zip(short, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)
    sum(one.float().sum() for one in short).backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == dtype
