from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segformer_spark.models.batch_norm import CrossRankBatchNorm2d
from tests.ranks import Group, run_on_ranks

SHAPE = (6, 5, 4, 3)


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(2)
    module = nn.BatchNorm2d(SHAPE[1])
    with torch.no_grad():
        module.weight.normal_()
        module.bias.normal_()
    return module


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator) * 3 + 10, torch.randn(SHAPE, generator=generator)


def run(module: nn.Module, values: torch.Tensor, direction: torch.Tensor) -> dict[str, Any]:
    values = values.clone().requires_grad_()
    out = module(values)
    out.backward(direction)
    tensors = {"out": out, "grad": values.grad, "weight": module.weight.grad, "bias": module.bias.grad}
    tensors |= dict(module.named_buffers())
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def on_rank(group: Group, counts: list[int]) -> dict[str, Any]:
    module = CrossRankBatchNorm2d.from_batch_norm(norm())
    module.reduce = group.sum
    start = sum(counts[: group.rank])
    part = slice(start, start + counts[group.rank])
    values, direction = data()
    return run(module, values[part], direction[part])


@pytest.mark.parametrize("counts", [[6], [3, 3], [1, 5], [1, 2, 3]])
def test_any_division_equals_the_whole_batch(counts: list[int]) -> None:
    whole = run(norm(), *data())
    parts = run_on_ranks(len(counts), on_rank, counts)
    for name in ("out", "grad"):
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias"):
        np.testing.assert_allclose(sum(part[name] for part in parts), whole[name], rtol=1e-4, atol=1e-4)
    for part in parts:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            np.testing.assert_allclose(part[name], whole[name], rtol=1e-5)


def test_without_reduce_it_is_batch_norm_bit_for_bit() -> None:
    ours, theirs = run(CrossRankBatchNorm2d.from_batch_norm(norm()), *data()), run(norm(), *data())
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_evaluation_uses_the_running_statistics() -> None:
    module, reference = CrossRankBatchNorm2d.from_batch_norm(norm()).eval(), norm().eval()
    module.reduce = lambda value: value * 1000
    torch.testing.assert_close(module(data()[0]), reference(data()[0]), rtol=0, atol=0)


def test_gradients_against_finite_differences() -> None:
    module = CrossRankBatchNorm2d.from_batch_norm(norm())
    module.reduce = lambda value: value.clone()
    from segformer_spark.models.batch_norm import _Normalize

    values = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *a: _Normalize.apply(*a, 1e-5, torch.clone)[0], (values, weight, bias))


def test_statistics_stay_fp32_and_exact_when_the_module_is_cast() -> None:
    module = nn.Sequential(CrossRankBatchNorm2d.from_batch_norm(norm()))
    mean = torch.full((SHAPE[1],), 1 / 3)
    module[0].running_mean.copy_(mean)
    module.half()
    assert module[0].weight.dtype == torch.float16
    assert module[0].running_mean.dtype == module[0].running_var.dtype == torch.float32
    assert torch.equal(module[0].running_mean, mean)
    assert module.eval()(data()[0].half()).dtype == torch.float16
