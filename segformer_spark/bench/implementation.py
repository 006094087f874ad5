"""This package's side of every benchmark, and which implementation runs a workload. Runs in a worker's process."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from segformer_spark.bench.baselines import BASELINES
from segformer_spark.bench.workload import (
    OURS,
    Assignment,
    LoaderSpec,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Workload,
    label_maps,
    names,
    random_batch,
    random_logits,
)
from segformer_spark.config.batch import plan_batches
from segformer_spark.config.image_size import size_text
from segformer_spark.config.load import load_config
from segformer_spark.config.schema import Config, InferenceConfig
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalItem, TrainBatch, fed_sample
from segformer_spark.data.registry import open_training_set
from segformer_spark.data.transforms import TrainTransform
from segformer_spark.distributed.devices import choose_device, set_float32_products, set_threads
from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.process_group import process_group
from segformer_spark.engine.engine import load_deepspeed
from segformer_spark.errors import UserError
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.losses.build import build_loss
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.models.segformer import build_segformer
from segformer_spark.models.size import model_size
from segformer_spark.run.allocator import keep_freed_memory
from segformer_spark.training.stepper import open_stepper

_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (4096, 4096, 4096))
_PRODUCT_SECONDS = 0.25


def build(assignment: Assignment) -> Workload:
    """The workload of an assignment.

    Raises:
        UserError: there is no such implementation of it.
    """
    spec = assignment.spec
    set_threads(spec.threads, assignment.num_ranks)
    if isinstance(spec, ModelSpec):
        set_float32_products(spec.precision, torch.device(spec.device))
    if spec.implementation == OURS or spec.keep_memory:
        keep_freed_memory()
    if spec.implementation == OURS:
        if isinstance(spec, ModelSpec) and spec.kind == "train":
            return _Train(spec, assignment.rank, assignment.port)
        return _OURS[spec.kind](spec)
    baseline = BASELINES.get((spec.kind, spec.implementation))
    if baseline is None:
        raise UserError(f"no workload {spec.kind} of {spec.implementation}")
    return baseline(spec)


@dataclass
class _Train(Workload):
    """An optimizer step of the engine, from uint8 images to updated weights."""

    spec: ModelSpec
    rank: int
    port: int

    def load(self) -> None:
        load_deepspeed(choose_device(self.spec.device, 0))

    def prepare(self) -> None:
        spec = self.spec
        config = load_config(
            overrides=[
                f"model.variant={spec.variant}",
                "model.pretrained=none",
                f"data.image_size={size_text(spec.image_size)}",
                f"training.batch_size={spec.batch}",
                f"training.precision={spec.precision}",
                f"training.activation_checkpointing={str(spec.recompute).lower()}",
                f"deepspeed.zero_stage={spec.zero_stage}",
                f"hardware.compile={spec.compile}",
                f"hardware.cuda_graphs={spec.cuda_graphs}",
                f"hardware.device={spec.device}",
                f"deepspeed.config={spec.deepspeed or 'null'}",
            ]
        ).config
        self._stack = ExitStack()
        device = choose_device(spec.device, self.rank)
        master = ("127.0.0.1", self.port) if spec.ranks > 1 else None
        launch = Launch("bench", self.rank, spec.ranks, self.rank, spec.ranks, master)
        group = self._stack.enter_context(process_group(launch, device))
        model = build_segformer(spec.variant, names(spec.classes), seed=0)
        loss = build_loss(config.training.loss, spec.classes, IGNORE_INDEX)
        plan = plan_batches(config.training, spec.ranks)
        batch = TrainBatch(*random_batch(spec.batch, spec.input_size, spec.classes))
        steps = open_stepper(model, loss, config, plan, group, itertools.repeat(batch))
        self._stepper = self._stack.enter_context(steps)
        self._device = device
        size = model_size(spec.variant, spec.classes, spec.input_size)
        self.flops = 6.0 * size.macs_merged * spec.batch * spec.ranks

    def run(self) -> None:
        self._stepper.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        self._stack.close()


@dataclass
class _Infer(Workload):
    """uint8 images -> class ids at their size, as `evaluate` and `submit` do it."""

    spec: ModelSpec

    def prepare(self) -> None:
        spec, size = self.spec, self.spec.input_size
        device = choose_device(spec.device, 0)
        model = build_segformer(spec.variant, names(spec.classes), seed=0).to(device)
        self._predictor = Predictor(model, device, InferenceView(size, InferenceConfig()), spec.precision)
        images, _ = random_batch(spec.batch, size, spec.classes)
        self._items = [EvalItem(index, pixels, size, None) for index, pixels in enumerate(images)]
        self.flops = 2.0 * model_size(spec.variant, spec.classes, size).macs_merged * spec.batch

    def run(self) -> None:
        for _, ids in self._predictor.predict([self._items]):
            ids.cpu()


@dataclass
class _Loss(Workload):
    """CE + Dice of quarter-size logits, and their gradient."""

    spec: LossSpec

    def prepare(self) -> None:
        spec = self.spec
        self._logits, self._labels = random_logits(spec.batch, spec.input_size, spec.classes)
        config: Config = load_config().config
        self._loss = build_loss(config.training.loss, spec.classes, IGNORE_INDEX)

    def run(self) -> None:
        self._logits.grad = None
        self._loss.of_coarse(self._logits, self._labels).backward()  # type: ignore[no-untyped-call]


@dataclass
class _Loader(Workload):
    """Training samples, one after the other, in one process."""

    spec: LoaderSpec

    def prepare(self) -> None:
        spec = self.spec
        config = load_config(
            overrides=[f"data.root={spec.root}", f"data.image_size={size_text(spec.image_size)}", *spec.settings]
        ).config
        self._dataset = open_training_set(config.data, config.augmentation.crop)
        self._transform = TrainTransform(spec.input_size, config.augmentation, seed=0)
        self._keys = _keys(len(self._dataset))

    def run(self) -> None:
        for epoch, index in itertools.islice(self._keys, self.spec.images):
            fed_sample(self._dataset, self._transform, epoch, index)


def _keys(length: int) -> Iterator[tuple[int, int]]:
    return ((epoch, index) for epoch in itertools.count() for index in range(length))


@dataclass
class _Metric(Workload):
    """Counts of predicted ids against labels."""

    spec: MetricSpec

    def prepare(self) -> None:
        self._predicted, self._truth = label_maps(self.spec.images, self.spec.input_size, self.spec.classes)

    def run(self) -> None:
        counts = EvaluationCounts.zeros(len(self._truth), self.spec.classes, 0)
        for index, (predicted, truth) in enumerate(zip(self._predicted, self._truth, strict=True)):
            counts.add(index, 0, predicted, truth, IGNORE_INDEX)


@dataclass
class _Product:
    left: torch.Tensor
    right: torch.Tensor
    repeats: int

    def run(self) -> None:
        for _ in range(self.repeats):
            self.left @ self.right
        if self.left.is_cuda:
            torch.cuda.synchronize()


@dataclass
class _MatrixProducts(Workload):
    """The fastest of several matrix products, repeated: what the machine's arithmetic can do."""

    spec: ModelSpec

    def prepare(self) -> None:
        narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = narrow.get(self.spec.precision, torch.float32)
        device = choose_device(self.spec.device, 0)
        rates = {}
        for sides in _PRODUCTS:
            product = _product(sides, dtype, device, 1)
            product.run()
            started = time.perf_counter()
            product.run()
            rates[sides] = 2 * math.prod(sides) / (time.perf_counter() - started)
        best = max(rates, key=lambda sides: rates[sides])
        repeats = max(1, round(_PRODUCT_SECONDS * rates[best] / (2 * math.prod(best))))
        self._product, self.flops = _product(best, dtype, device, repeats), 2.0 * math.prod(best) * repeats

    def run(self) -> None:
        self._product.run()


def _product(sides: tuple[int, int, int], dtype: torch.dtype, device: Any, repeats: int) -> _Product:
    rows, inner, columns = sides
    left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    return _Product(left.to(dtype), right.to(dtype), repeats)


_OURS: dict[str, Callable[[Any], Workload]] = {
    "infer": _Infer,
    "loss": _Loss,
    "loader": _Loader,
    "metric": _Metric,
    "matrix_products": _MatrixProducts,
}
