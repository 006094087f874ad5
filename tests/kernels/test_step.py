"""A step with the arithmetic of GPUs asks nothing of the host, and is one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segformer_spark.bench.roofline.trace import tracing
from segformer_spark.config.schema import LossConfig
from segformer_spark.distributed.process_group import Group
from segformer_spark.kernels.select import Setting
from segformer_spark.losses.build import build_loss
from segformer_spark.models.mix_transformer_gpu import branch_scales, split_scales
from tests.ranks import run_on_ranks
from tests.tiny import tiny_segformer


class Step(nn.Module):
    """Model and loss, with class weights and ignored pixels."""

    def __init__(self, kernels: Setting, group: Group | None = None) -> None:
        super().__init__()
        self.model = tiny_segformer(["a", "b", "c"]).train()
        config = LossConfig(class_weights=[1.0, 2.0, 0.5])
        reduce = {} if group is None else {"reduce": group.differentiable_sum}
        self.loss = build_loss(config, 3, 255, **reduce)
        if group is not None:
            self.model.reduce_batch_norm(group.sum)
        self.model.use_kernels(kernels)
        self.loss.use_kernels(kernels)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.loss.of_outputs(self.model(images, with_auxiliary=True), labels)


def test_stochastic_depth_keeps_the_mean_of_a_branch() -> None:
    """A factor is 0 or 1 / keep, its own for every sample, branch and block; without a rate there is none."""
    torch.manual_seed(0)
    rates = [0.0, 0.5]
    scales = split_scales(branch_scales(torch.empty(4000, 3, 1, 1), rates), rates)
    assert scales[:2] == [None, None]
    first, second = scales[2:]
    assert first is not None
    assert second is not None
    assert set(first.tolist()) == {0.0, 2.0}
    assert float(first.mean()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(first, second)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 64, 64), generator=generator, dtype=torch.uint8)
    labels[0, :20] = 255
    return torch.randn(2, 3, 64, 64, generator=generator), labels


@pytest.mark.parametrize("kernels", ["plain", "gpu"])
def test_no_host_sync(kernels: Setting) -> None:
    step, given = Step(kernels), batch()
    step(*given).backward()  # what is made once
    with tracing() as trace:
        step(*given).backward()
    assert trace.host_syncs == {}
    assert trace.launches > 100


def test_a_host_sync_would_be_seen() -> None:
    step, given = Step("cpu"), batch()
    with tracing() as trace:
        step(*given).backward()
    assert trace.host_syncs["bincount"] > 0


@pytest.mark.parametrize("kernels", [pytest.param("plain", marks=pytest.mark.sweep), "gpu"])
def test_one_graph_forward_and_backward(kernels: Setting) -> None:
    assert run_on_ranks(2, graphs, kernels)[0] == [1, 1]


def graphs(group: Group, kernels: Setting) -> list[int]:
    """How many graphs forward and backward have, after a step through them as one without."""
    found = {"forward": 0, "backward": 0}

    def counting(which: str):  # type: ignore[no-untyped-def]
        def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]):  # type: ignore[no-untyped-def]
            found[which] += 1
            return graph.forward

        return compiler

    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=counting("forward"), bw_compiler=counting("backward"))
    step = Step(kernels, group)
    torch.manual_seed(0)
    expected = step(*batch())
    expected.backward()
    gradients = [parameter.grad for parameter in step.parameters()]
    step.zero_grad()
    torch.manual_seed(0)
    value = torch.compile(step, fullgraph=True, backend=backend, dynamic=False)(*batch())
    value.backward()
    torch.testing.assert_close(value, expected)
    for parameter, gradient in zip(step.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    return [found["forward"], found["backward"]]
