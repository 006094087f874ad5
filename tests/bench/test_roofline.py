"""The estimate counts what it says, by the rules of the device that it is for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from segformer_spark.bench.roofline import steps
from segformer_spark.bench.roofline.compiled import counting_compiler
from segformer_spark.bench.roofline.cuda_autocast import cuda_rules, cuda_rules_on_cpu
from segformer_spark.bench.roofline.device_models import DEVICE_MODELS
from segformer_spark.bench.roofline.report import parts
from segformer_spark.bench.roofline.steps import AUTOCAST, COMPILED, NARROW, StepSpec, trace_steps
from segformer_spark.bench.roofline.trace import Trace, tracing
from segformer_spark.bench.workload import OURS
from segformer_spark.cli import main
from segformer_spark.config.variants import Variant
from segformer_spark.kernels.cost import Cost
from tests.ranks import Group, run_on_ranks

A100 = DEVICE_MODELS["a100-40"]


def costs(trace: Trace) -> list[tuple[str, Cost]]:
    return [(operation.name, operation.cost) for operation in trace.operations]


def test_a_depthwise_convolution_is_counted_as_such() -> None:
    """64 channels, 2 x 32 x 32, 3 x 3; torch's counter says 153,354,240 (pytorch pull request 183405)."""
    with FakeTensorMode():
        maps = torch.randn(2, 64, 32, 32, requires_grad=True)
        weight = torch.randn(64, 1, 3, 3, requires_grad=True)
        with tracing() as trace:
            functional.conv2d(maps, weight, padding=1, groups=64).sum().backward()
    found = dict(costs(trace))
    assert found["aten.convolution"].flops == 2 * 64 * 2 * 32 * 32 * 9
    assert found["aten.convolution_backward"].flops == 4_718_592
    assert found["aten.convolution_backward"].product is None, "not for tensor cores"


def test_flops_of_products_are_those_of_torchs_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():
        left, right = torch.randn(8, 20, 30, requires_grad=True), torch.randn(30, 40, requires_grad=True)
        conv, maps = torch.randn(12, 5, 3, 3, requires_grad=True), torch.randn(2, 5, 9, 9, requires_grad=True)
        queries, keys = (torch.randn(2, 4, n, 16, requires_grad=True) for n in (50, 30))

        def work() -> None:
            attended = functional.scaled_dot_product_attention(queries, keys, keys)
            ((left @ right).sum() + functional.conv2d(maps, conv).sum() + attended.sum()).backward()

        with tracing() as trace:
            work()
        counter: Any = FlopCounterMode(display=False)
        with counter:
            work()
    attention = sum(cost.flops for name, cost in costs(trace) if "attention" in name)
    assert attention == 2 * (2 + 5) * 2 * 4 * 50 * 30 * 16
    theirs = sum(n for op, n in counter.flop_counts["Global"].items() if "attention" not in str(op))
    assert trace.flops - attention == theirs


@pytest.mark.parametrize(
    ("work", "read", "written", "launches"),
    [
        (lambda x: x.view(8, 8).t()[1:], 0, 0, 0),
        (lambda x: x + x, 256, 256, 1),
        (lambda x: x.add_(1), 256, 256, 1),
        (lambda x: x.zero_(), 0, 256, 1),
        (lambda x: x.copy_(x.new_empty(64)), 256, 256, 1),
        (lambda x: x.new_empty(64), 0, 0, 0),
        (lambda x: x[:1].expand(64) * 2, 4, 256, 1),
        (lambda x: x.index_select(0, torch.zeros(4, dtype=torch.int64)), 4 * 4 + 4 * 8, 16, 2),
        (lambda x: torch.cat([x, x]), 256, 512, 1),
        (lambda x: torch._foreach_add([x] * 200, 1.0), 256, 200 * 256, 2),
    ],
)
def test_bytes(work: Any, read: int, written: int, launches: int) -> None:
    with FakeTensorMode():
        values = torch.randn(64)
        with tracing() as trace:
            work(values)
    index = 32 if read == 48 else 0  # the zeros of the index are written, too
    total = [sum(getattr(cost, what) for _, cost in costs(trace)) for what in ("read", "written", "launches")]
    assert total == [read, written + index, launches]


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: torch.bincount(x.long(), minlength=4), "bincount"),
        (lambda x: x[x > 0], "boolean index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.to("cpu"), "to(cpu)"),
        (lambda x: torch.cuda.synchronize(), "cuda.synchronize"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "tensor(device)"),
        (lambda x: torch.as_tensor(3.0, device=x.device), "as_tensor(device)"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
    ],
)
def test_host_syncs_have_names(work: Any, name: str) -> None:
    values = torch.rand(16)
    with tracing() as trace:
        work(values)
    assert trace.host_syncs == {name: 1}
    with tracing() as quiet:
        torch.where(values > 0, values, 0).sum()
    assert quiet.host_syncs == {}


def test_memory_is_what_lives_at_a_time() -> None:
    with FakeTensorMode():
        first = torch.empty(1000)
        with tracing([first]) as trace:
            second = first + 1
            del second
            third = first + 2
            third.add_(1)
    assert trace.peak_bytes == 8000


def dtypes(values: dict[str, Tensor]) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in values.items()}


def layers(x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    return {
        "linear": functional.linear(x, weight),
        "conv": functional.conv2d(x.view(1, 8, 2, 4), weight.view(8, 8, 1, 1)),
        "norm": functional.layer_norm(x.bfloat16(), (8,)),
        "softmax": x.bfloat16().softmax(1),
        "sum": x.bfloat16().sum(),
        "loss": functional.cross_entropy(x.bfloat16(), torch.zeros(8, dtype=torch.int64)),
        "gelu": functional.gelu(x.bfloat16()),
        "residual": x + functional.linear(x, weight),
    }


def test_autocast_follows_cudas_rules_whatever_the_device() -> None:
    x, weight = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
    with cuda_rules_on_cpu(torch.bfloat16):
        found = dtypes(layers(x, weight))
    wide = {"norm", "softmax", "sum", "loss", "residual"}
    assert found == {name: torch.float32 if name in wide else torch.bfloat16 for name in found}
    with torch.autocast("cpu", torch.bfloat16):
        own = dtypes(layers(x, weight))
    assert own["norm"] == own["softmax"] == torch.bfloat16, "the CPU has its own rules back"


def test_every_operation_that_cuda_casts_is_among_the_rules() -> None:
    known = {f"aten::{name}" for names in cuda_rules().values() for name in names}
    registered = {
        n for n in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA") if n.startswith("aten")
    }
    # These have code of their own; nothing here uses them.
    special = {"binary_cross_entropy", "norm", "cudnn_", "_cudnn", "frobenius_norm", "linalg_matrix"}
    assert {name for name in registered - known if not any(word in name for word in special)} == set()


def test_time_is_the_longest_of_arithmetic_memory_and_launches() -> None:
    assert A100.seconds(Cost(launches=3), tf32=False) == pytest.approx(12e-6)
    assert A100.seconds(Cost(read=1e9, written=1e9, launches=1), tf32=False) == pytest.approx(2e9 / (0.85 * 1.555e12))
    product = Cost(flops=1e12, launches=1, product=torch.float32)
    assert A100.seconds(product, tf32=True) == pytest.approx(1e12 / (0.65 * 156e12))
    assert A100.seconds(product, tf32=False) == pytest.approx(1e12 / (0.65 * 19.5e12))
    narrow = Cost(flops=1e12, launches=1, product=torch.bfloat16)
    assert A100.seconds(narrow, tf32=False) == pytest.approx(1e12 / (0.65 * 312e12))


def milliseconds(trace: Trace) -> float:
    return sum(part.ms for part in parts(trace, A100, tf32=False))


@pytest.mark.sweep
def test_a_step_of_this_package_is_the_shortest() -> None:
    """SegFormer-B0, 16 x 512 px, bf16: what is reached, and what a change must not lose."""
    traces = trace_steps(StepSpec("b0", 16, 512, 3, "bf16", "gpu"))
    own = traces[OURS]
    assert own.host_syncs == {}
    assert milliseconds(own) < 8.5
    assert milliseconds(traces[AUTOCAST]) > 2.9 * milliseconds(own)
    assert milliseconds(traces[NARROW]) > 1.8 * milliseconds(own)
    assert own.launches < 520
    plain = trace_steps(StepSpec("b0", 16, 512, 3, "bf16", "plain"))[OURS]
    assert plain.host_syncs == {}
    assert milliseconds(plain) < 13.0


def test_the_verb_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "estimate.json"
    given = ["--variant", "b0", "--batch", "1", "--image-size", "64", "--top", "3", "--json", str(file)]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "roofline", *given])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "estimated training step: SegFormer-B0, 1 x 64 px, 3 classes, bf16, A100 40 GB" in said
    assert "transformers, bf16 parameters" in said
    assert "An estimate: 65 % of the peak" in said
    record = json.loads(file.read_text())
    assert record["kind"] == "estimate"
    assert record["implementations"].keys() == {OURS, AUTOCAST, NARROW}
    assert record["implementations"][OURS]["host_syncs"] == {}


def planned_step(group: Group) -> dict[str, Any]:
    """What eager and compiled steps dispatch and compute; in a process where pytest does not listen to torch's logs."""
    small: Any = Variant(depths=(1, 1, 1, 1), hidden_sizes=(8, 16, 16, 16), decoder_size=8, num_heads=(1, 1, 1, 1))
    spec = StepSpec(small, 2, 128, 3, "bf16", "plain", compile="auto")
    traces = {OURS: steps._ours(spec), COMPILED: steps._ours_compiled(spec)}
    products = {"aten.mm", "aten.addmm", "aten.bmm"}
    return {
        name: {
            "dispatches": traces[name].dispatches,
            "bytes": traces[name].moved_bytes,
            "flops": sum(o.cost.flops for o in traces[name].operations if o.name in products),
            "names": dict(Counter(operation.name for operation in traces[name].operations)),
        }
        for name in (OURS, COMPILED)
    }


@pytest.mark.sweep
def test_a_compiled_step_is_as_inductor_plans_it() -> None:
    """Fewer dispatched operations than the eager step, the same products, and norms among what is fused."""
    found = run_on_ranks(1, planned_step)[0]
    eager, compiled = found[OURS], found[COMPILED]
    assert compiled["dispatches"] < 0.75 * eager["dispatches"]
    assert compiled["names"]["compiled: pointwise"] > 0
    assert compiled["names"]["compiled: with sums"] > 0
    # Norms are among what is fused, but for those of patch embeddings and stages.
    assert eager["names"]["aten.native_layer_norm"] - compiled["names"]["aten.native_layer_norm"] == 11
    assert compiled["flops"] == pytest.approx(eager["flops"], rel=0.02)
    assert 0.5 * eager["bytes"] < compiled["bytes"] < 1.3 * eager["bytes"]


@pytest.mark.sweep
def test_inductors_bytes_of_a_known_graph() -> None:
    """A sum of two vectors reads both and writes one; a product is a kernel of its own."""

    def add_and_multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left + right).sin() @ right

    with counting_compiler() as counts, FakeTensorMode():
        function = torch.compile(add_and_multiply, dynamic=False)
        given = (torch.zeros(64, 64), torch.zeros(64, 64))
        function(*given)
        with tracing(host_calls=False) as trace:
            counts.trace = trace
            function(*given)
    assert counts.graphs == 1
    fused, product = trace.operations
    assert (fused.name, fused.cost.read) == ("compiled: pointwise", 3 * 64 * 64 * 4)
    assert (product.name, product.cost.flops) == ("aten.mm", 2 * 64**3)
    assert (product.cost.read, product.cost.written) == (2 * 64 * 64 * 4, 64 * 64 * 4)
