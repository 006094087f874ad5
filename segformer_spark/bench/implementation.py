"""What this package's contestants do; bench/peers.py has the others. Runs in a worker's process."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from segformer_spark.bench.peers import PEERS
from segformer_spark.bench.work import Work, label_maps, names, random_batch, random_logits
from segformer_spark.config.batch import plan_batches
from segformer_spark.config.load import load_config
from segformer_spark.config.schema import Config, InferenceConfig
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalItem, TrainBatch, fed_sample
from segformer_spark.data.registry import open_training_set
from segformer_spark.data.transforms import TrainTransform
from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.process_group import choose_device, process_group, set_threads
from segformer_spark.engine.engine import Engine, load_deepspeed
from segformer_spark.errors import UserError
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.losses.build import build_loss
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.models.segformer import build_segformer
from segformer_spark.models.size import model_size
from segformer_spark.run.allocator import keep_freed_memory

OURS = "segformer_spark"

_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (4096, 4096, 4096))
_PRODUCT_SECONDS = 0.25


def build(task: dict[str, Any]) -> Work:
    """The work that a task names.

    Raises:
        UserError: a peer's package is not installed.
    """
    set_threads(task.get("threads"), task.get("ranks", 1))
    if task.get("tf32"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    known = {**PEERS, **_OURS}
    if task["who"] == OURS or task.get("keep_memory"):
        keep_freed_memory()
    maker = known.get((task["kind"], task["who"]))
    if maker is None:
        raise UserError(f"no task {task['kind']} for {task['who']}")
    return maker(task)


@dataclass
class _Train(Work):
    """An optimizer step of the engine, from uint8 images to updated weights."""

    task: dict[str, Any]

    def load(self) -> None:
        load_deepspeed(choose_device(self.task["device"], 0))

    def prepare(self) -> None:
        task = self.task
        config = load_config(
            overrides=[
                f"model.variant={task['variant']}",
                "model.pretrained=none",
                f"data.image_size={task['image_size']}",
                f"training.batch_size={task['batch']}",
                f"training.precision={task['precision']}",
                f"training.activation_checkpointing={str(task['recompute']).lower()}",
                f"deepspeed.zero_stage={task['zero_stage']}",
                f"hardware.compile={str(task['compile']).lower()}",
                f"hardware.device={task['device']}",
                f"deepspeed.config={task.get('deepspeed', 'null')}",
            ]
        ).config
        self._stack = ExitStack()
        ranks, rank = task.get("ranks", 1), task.get("rank", 0)
        device = choose_device(task["device"], rank)
        master = ("127.0.0.1", task["port"]) if ranks > 1 else None
        launch = Launch("bench", rank, ranks, rank, ranks, master)
        group = self._stack.enter_context(process_group(launch, device))
        classes = task["classes"]
        model = build_segformer(task["variant"], names(classes), seed=0)
        loss = build_loss(config.training.loss, classes, IGNORE_INDEX)
        plan = plan_batches(config.training, ranks)
        self._engine = Engine(model, loss, config, plan, group)
        images, labels = random_batch(task)
        self._batch = TrainBatch(images, labels)
        self._steps = itertools.count()
        self._device = device
        size = model_size(task["variant"], classes, task["image_size"])
        self.flops = 6.0 * size.macs_merged * task["batch"] * ranks

    def run(self) -> None:
        self._engine.train_step([self._batch], next(self._steps))
        if self._device.type == "cuda":
            torch.cuda.synchronize()


@dataclass
class _Infer(Work):
    """uint8 images -> class ids at their size, as `evaluate` and `submit` do it."""

    task: dict[str, Any]

    def prepare(self) -> None:
        task = self.task
        device = choose_device(task["device"], 0)
        model = build_segformer(task["variant"], names(task["classes"]), seed=0).to(device)
        view = InferenceView(task["image_size"], InferenceConfig())
        self._predictor = Predictor(model, device, view, task["precision"])
        images, _ = random_batch(task)
        side = task["image_size"]
        self._items = [EvalItem(index, pixels, (side, side), None) for index, pixels in enumerate(images)]
        size = model_size(task["variant"], task["classes"], task["image_size"])
        self.flops = 2.0 * size.macs_merged * task["batch"]

    def run(self) -> None:
        for _, ids in self._predictor.predict([self._items]):
            ids.cpu()


@dataclass
class _Loss(Work):
    """CE + Dice of quarter-size logits, and their gradient."""

    task: dict[str, Any]

    def prepare(self) -> None:
        self._logits, self._labels = random_logits(self.task)
        config: Config = load_config().config
        self._loss = build_loss(config.training.loss, self.task["classes"], IGNORE_INDEX)

    def run(self) -> None:
        self._logits.grad = None
        self._loss.of_coarse(self._logits, self._labels).backward()  # type: ignore[no-untyped-call]


@dataclass
class _Loader(Work):
    """Training samples, one after the other, in one process."""

    task: dict[str, Any]

    def prepare(self) -> None:
        task = self.task
        settings = [f"data.root={task['root']}", f"data.image_size={task['image_size']}", *task["settings"]]
        config = load_config(overrides=settings).config
        self._dataset = open_training_set(config.data, config.augmentation.crop)
        self._transform = TrainTransform(task["image_size"], config.augmentation, seed=0)
        self._keys = _keys(len(self._dataset))

    def run(self) -> None:
        for epoch, index in itertools.islice(self._keys, self.task["images"]):
            fed_sample(self._dataset, self._transform, epoch, index)


def _keys(length: int) -> Iterator[tuple[int, int]]:
    return ((epoch, index) for epoch in itertools.count() for index in range(length))


@dataclass
class _Evaluate(Work):
    """Counts of predicted ids against labels."""

    task: dict[str, Any]

    def prepare(self) -> None:
        self._predicted, self._truth = label_maps(self.task)

    def run(self) -> None:
        counts = EvaluationCounts.zeros(len(self._truth), self.task["classes"], 0)
        for index, (predicted, truth) in enumerate(zip(self._predicted, self._truth, strict=True)):
            counts.add(index, 0, predicted, truth, IGNORE_INDEX)


@dataclass
class _MatrixProducts(Work):
    """The fastest of several matrix products, repeated: what the machine's arithmetic can do."""

    task: dict[str, Any]

    def prepare(self) -> None:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.task["precision"]]
        device = choose_device(self.task["device"], 0)
        rates = {}
        for sides in _PRODUCTS:
            self._choose(sides, dtype, device, 1)
            self.run()
            started = time.perf_counter()
            self.run()
            rates[sides] = 2 * math.prod(sides) / (time.perf_counter() - started)
        best = max(rates, key=lambda sides: rates[sides])
        self._choose(best, dtype, device, max(1, round(_PRODUCT_SECONDS * rates[best] / (2 * math.prod(best)))))

    def _choose(self, sides: tuple[int, int, int], dtype: torch.dtype, device: torch.device, repeats: int) -> None:
        rows, inner, columns = sides
        self._left = torch.randn(rows, inner, device=device).to(dtype)
        self._right = torch.randn(inner, columns, device=device).to(dtype)
        self._repeats, self.flops = repeats, 2.0 * rows * inner * columns * repeats

    def run(self) -> None:
        for _ in range(self._repeats):
            self._left @ self._right
        if self._left.is_cuda:
            torch.cuda.synchronize()


_OURS: dict[tuple[str, str], Callable[[dict[str, Any]], Work]] = {
    ("train", OURS): _Train,
    ("infer", OURS): _Infer,
    ("loss", OURS): _Loss,
    ("loader", OURS): _Loader,
    ("evaluate", OURS): _Evaluate,
    ("products", OURS): _MatrixProducts,
}
