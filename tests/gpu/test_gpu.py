"""What must hold on a GPU: `make gpu-check` runs this on one. Elsewhere the CPU stands in, with the GPU's arithmetic.

Nothing here is passed between processes but numbers and arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.bench.roofline.trace import tracing
from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalItem
from segformer_spark.distributed.devices import set_float32_products, use_deterministic_algorithms
from segformer_spark.errors import UserError
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.kernels.check import TOLERANCE, differences, wrong
from segformer_spark.kernels.registry import OPERATIONS, runs_fused
from segformer_spark.models.segformer import build_segformer
from tests.engine.test_parity import global_batch, make_engine, own_batches
from tests.gpu.on_device import CHECKED, Group, on_device

pytestmark = pytest.mark.gpu

STEPS = 20
ON_GPU_ONLY = pytest.mark.skipif(not CHECKED, reason="needs a GPU: make gpu-check")


def losses(group: Group, overrides: tuple[str, ...], stage: int = 1, steps: int = STEPS) -> list[float]:
    """Of the first steps, on the same images again and again."""
    precision = next((text.split("=")[1] for text in overrides if "training.precision" in text), "fp32")
    set_float32_products(precision, group.device)
    engine = make_engine(group, stage, overrides=("training.optimizer.lr=1e-3", *overrides))
    batch = own_batches(0, engine.plan, group.rank)
    return [engine.train_step(batch, step).loss for step in range(steps)]


def test_the_losses_are_those_of_the_cpu() -> None:
    expected = on_device(losses, ("hardware.kernels=cpu",), device="cpu")
    for kernels in ("plain", "gpu"):
        np.testing.assert_allclose(on_device(losses, (f"hardware.kernels={kernels}",)), expected, rtol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "bf16", pytest.param("fp16", marks=ON_GPU_ONLY)])
def test_every_precision_learns_alike(precision: str) -> None:
    expected = on_device(losses, ("hardware.kernels=gpu",))
    found = on_device(losses, ("hardware.kernels=gpu", f"training.precision={precision}"))
    assert found[-1] < found[0]
    assert found[0] - found[-1] == pytest.approx(expected[0] - expected[-1], rel=0.15)


@pytest.mark.parametrize("stage", [0, 2])
def test_the_stages_agree(stage: int) -> None:
    setting = ("hardware.kernels=gpu",)
    np.testing.assert_allclose(on_device(losses, setting, stage, 5), on_device(losses, setting, 1, 5), rtol=1e-5)


@ON_GPU_ONLY
def test_every_kernel_computes_its_plain_formula() -> None:
    found = on_device(kernel_differences)
    assert wrong(found) == {}
    able = torch.cuda.get_device_capability() >= (8, 0)
    assert found.keys() == {name for name, own in OPERATIONS.items() if able or not own.multiplies}


def kernel_differences(group: Group) -> dict[str, dict[str, float]]:
    return differences(group.device, list(TOLERANCE))


@ON_GPU_ONLY
def test_the_kernels_run() -> None:
    assert all(runs_fused([name], torch.device("cuda", 0)) for name in ("add_norm", "depthwise_gelu", "loss_sums"))


def deterministic(group: Group) -> list[float]:
    use_deterministic_algorithms()
    return losses(group, ("hardware.kernels=gpu", "hardware.deterministic=true"), 1, 5)


def test_a_deterministic_run_repeats_itself() -> None:
    assert on_device(deterministic) == on_device(deterministic)


def resumed(group: Group) -> list[list[float]]:
    """Three steps, then two more: in one go, and from an exported state in a new engine."""
    use_deterministic_algorithms()
    setting = ("hardware.kernels=gpu", "hardware.deterministic=true")
    engine = make_engine(group, 1, overrides=setting)
    batch = own_batches(0, engine.plan, group.rank)
    for step in range(3):
        engine.train_step(batch, step)
    state = engine.export_state()
    whole = [engine.train_step(batch, step).loss for step in (3, 4)]
    engine.close()
    other = make_engine(group, 1, overrides=setting)
    other.import_state(state)
    return [whole, [other.train_step(batch, step).loss for step in (3, 4)]]


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    whole, parts = on_device(resumed)
    assert parts == whole


def host_syncs(group: Group) -> dict[str, int]:
    engine = make_engine(group, 1, overrides=("hardware.kernels=gpu", "training.ema.decay=0.9"))
    batch = own_batches(0, engine.plan, group.rank)
    for step in range(3):
        engine.train_step(batch, step)
    if group.device.type == "cuda":
        images = batch[0].images.pin_memory()
        batch = [type(batch[0])(images, batch[0].masks.pin_memory(), batch[0].files)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.launch_step(batch, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return {}
    with tracing() as trace:
        engine.launch_step(batch, 3)
    return dict(trace.host_syncs)


def test_a_step_asks_nothing_of_the_host() -> None:
    assert on_device(host_syncs) == {}


def class_ids(group: Group, kernels: str) -> np.ndarray[Any, Any]:
    model = build_segformer("b0", ["a", "b", "c"], seed=0).to(group.device).eval()
    model.use_kernels(kernels)  # type: ignore[arg-type]
    set_float32_products("fp32", group.device)
    predictor = Predictor(model, group.device, InferenceView(96, InferenceConfig()))
    images = torch.nn.functional.interpolate(global_batch(1).images.float(), size=96, mode="bilinear").to(torch.uint8)
    items = [EvalItem(index, pixels, (130, 111), None) for index, pixels in enumerate(images)]
    return np.stack([ids.cpu().numpy() for _, ids in predictor.predict([items])])


def test_predictions_are_those_of_the_cpu_but_for_ties() -> None:
    expected, found = on_device(class_ids, "cpu", device="cpu"), on_device(class_ids, "gpu")
    assert len(np.unique(expected)) > 1
    assert (found != expected).mean() < 1e-4


def without_memory(group: Group) -> str:
    engine = make_engine(group, 1)

    def full(*_: Any) -> None:
        if group.device.type == "cuda":
            torch.empty(2**50, dtype=torch.uint8, device=group.device)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB")

    engine.model.register_forward_pre_hook(full)
    with pytest.raises(UserError) as error:
        engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    return str(error.value)


def test_a_full_gpu_is_an_error_for_the_user() -> None:
    said = on_device(without_memory)
    assert "the GPU's memory is full at step 1" in said
    assert "training.batch_size" in said
    assert "segformer-spark tune batch-size" in said
