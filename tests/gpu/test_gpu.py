"""What must hold on a GPU: `make gpu-check` runs this on one. Elsewhere the CPU stands in, with the GPU's arithmetic.

Nothing here is passed between processes but numbers and arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.bench.roofline.trace import tracing
from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalItem
from segformer_spark.data.readers.spark import TEST_FOLDER
from segformer_spark.distributed.devices import set_float32_products, use_deterministic_algorithms
from segformer_spark.engine import cuda_graphs
from segformer_spark.errors import UserError
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.kernels.check import TOLERANCE, differences, wrong
from segformer_spark.kernels.registry import OPERATIONS, runs_fused
from segformer_spark.models.segformer import SegFormer, build_segformer
from segformer_spark.submission.submit import SubmitOptions, run_submission
from tests.engine.recorded import record
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


def test_two_ranks_on_one_gpu_train_as_one() -> None:
    """Over gloo: NCCL takes one rank per GPU."""
    setting = ("hardware.kernels=gpu", "training.precision=fp32")
    one, two = (on_device(global_losses, setting, ranks=ranks) for ranks in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def global_losses(group: Group, overrides: tuple[str, ...]) -> list[float]:
    """Of five steps that share one global batch; stage 0, whose only collective gloo has on GPUs."""
    set_float32_products("fp32", group.device)
    engine = make_engine(group, 0, overrides=overrides)
    return [engine.train_step(own_batches(step, engine.plan, group.rank), step).loss for step in range(5)]


def test_cuda_graphs_train_bit_by_bit_alike() -> None:
    setting = ("hardware.kernels=gpu", "data.image_size=64", "training.precision=bf16")
    graphed = on_device(with_graphs, (*setting, "hardware.cuda_graphs=auto"))
    assert graphed == on_device(losses, setting, 1, 5)


def with_graphs(group: Group, overrides: tuple[str, ...]) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        if group.device.type == "cpu":
            patch.setattr(cuda_graphs, "capture_for", lambda device: record)
        found = losses(group, overrides, 1, 5)
        made: list[bool] = []
        given = SegFormer.graph_encoder

        def counted(*args: Any) -> None:
            given(*args)
            made.append(True)

        patch.setattr(SegFormer, "graph_encoder", counted)
        make_engine(group, 1, overrides=overrides)
        assert made, "the stages were recorded"
    return found


@ON_GPU_ONLY
@pytest.mark.parametrize("setting", ["on", "auto"])
def test_a_compiled_encoder_trains_alike(setting: str) -> None:
    expected = on_device(losses, ("hardware.kernels=gpu",), 1, 5)
    found = on_device(losses, ("hardware.kernels=gpu", f"hardware.compile={setting}"), 1, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


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


def resumed(group: Group, deterministic: bool) -> list[list[float]]:
    """Three steps, then two more: in one go, and from an exported state in a new engine."""
    setting: tuple[str, ...] = ("hardware.kernels=gpu",)
    if deterministic:
        use_deterministic_algorithms()
        setting = (*setting, "hardware.deterministic=true")
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
    whole, parts = on_device(resumed, True)
    assert parts == whole


def test_without_deterministic_kernels_a_resumed_run_goes_on_to_rounding() -> None:
    """Libraries may add in another order: a thousandth of the loss in two steps."""
    whole, parts = on_device(resumed, False)
    np.testing.assert_allclose(parts, whole, rtol=1e-3)


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
    predictor = Predictor(model, group.device, InferenceView((96, 96), InferenceConfig()))
    images = torch.nn.functional.interpolate(global_batch(1).images.float(), size=96, mode="bilinear").to(torch.uint8)
    items = [EvalItem(index, pixels, (130, 111), None) for index, pixels in enumerate(images)]
    return np.stack([ids.cpu().numpy() for _, ids in predictor.predict([items])])


def test_predictions_are_those_of_the_cpu_but_for_ties() -> None:
    expected, found = on_device(class_ids, "cpu", device="cpu"), on_device(class_ids, "gpu")
    assert len(np.unique(expected)) > 1
    assert (found != expected).mean() < 1e-4


def submitted(group: Group, model: str, images: str, output: str, kernels: str) -> list[str]:
    """Names of a submission's files, whose contents lie in `output`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGFORMER_KERNELS", kernels)
        set_float32_products("fp32", group.device)
        run_submission(SubmitOptions(Path(model), Path(images), Path(output)), group)
    return sorted(path.name for path in Path(output).glob("*.npz"))


def test_a_submission_is_that_of_the_cpu_but_for_ties(trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    given, folders = (str(trained_run / "final"), str(spark_root / TEST_FOLDER)), [tmp_path / "cpu", tmp_path / "gpu"]
    names = on_device(submitted, *given, str(folders[0]), "cpu", device="cpu")
    assert names
    assert on_device(submitted, *given, str(folders[1]), "gpu") == names
    for name in names:
        expected, found = (np.concatenate([*np.load(folder / name).values()]) for folder in folders)
        assert (found != expected).mean() < 1e-4, name


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
