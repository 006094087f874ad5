"""What a benchmark runs: typed specifications that travel to worker processes, and random inputs that all share."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from segformer_spark.config.image_size import ImageSize, Size, height_width

OURS = "segformer_spark"
"""The implementation of this package; the others are baselines (bench/baselines.py)."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Spec(_Message):
    """What every workload says.

    Attributes:
        implementation: whose code runs it.
        threads: CPU threads of torch; None for all that the process may use.
        keep_memory: use the allocator's settings that this package makes for its own processes.
    """

    implementation: str = OURS
    image_size: ImageSize
    classes: int = 3
    device: str = "cpu"
    threads: int | None = None
    keep_memory: bool = False

    @property
    def input_size(self) -> Size:
        """`image_size` as (height, width)."""
        return height_width(self.image_size)


class ModelSpec(_Spec):
    """A training step, an inference, or the machine's peak at the same precision.

    Attributes:
        attention: of transformers' model.
        recompute: this package's activation checkpointing.
        compile, cuda_graphs: as hardware.compile and hardware.cuda_graphs; a baseline is compiled as a whole or not.
        narrow_parameters: of a baseline, in bf16 as DeepSpeed's bf16 section has them, rather than under autocast.
        deepspeed: a DeepSpeed JSON file in place of ds_configs/zero<N>.json.
        ranks: processes that run it together.
    """

    kind: Literal["train", "infer", "matrix_products"]
    variant: str
    batch: int
    precision: str = "fp32"
    zero_stage: int = 0
    recompute: bool = False
    compile: Literal["off", "on", "auto"] = "off"
    cuda_graphs: Literal["off", "auto"] = "off"
    attention: Literal["sdpa", "eager"] = "sdpa"
    narrow_parameters: bool = False
    deepspeed: str | None = None
    ranks: int = 1


class LossSpec(_Spec):
    """CE + Dice of quarter-size logits, and their gradient."""

    kind: Literal["loss"] = "loss"
    batch: int


class LoaderSpec(_Spec):
    """Training samples of a SPARK set at `root`, with configuration overrides as `--set` takes them."""

    kind: Literal["loader"] = "loader"
    root: str
    images: int
    settings: tuple[str, ...] = ()


class MetricSpec(_Spec):
    """Counting predicted against true labels."""

    kind: Literal["metric"] = "metric"
    images: int


Spec = Annotated[ModelSpec | LossSpec | LoaderSpec | MetricSpec, Field(discriminator="kind")]


class Assignment(_Message):
    """A worker's part: the workload, its rank, and the port at which the ranks meet on this machine."""

    spec: Spec
    rank: int = 0
    port: int = 0

    @property
    def num_ranks(self) -> int:
        return self.spec.ranks if isinstance(self.spec, ModelSpec) else 1


class Answer(_Message):
    """A worker's answer: to the assignment an empty one, to a call its seconds, at the end memory and FLOPs."""

    error: str | None = None
    seconds: float | None = None
    memory_mib: float | None = None
    flops: float | None = None


class Workload:
    """A piece of work that can be repeated.

    Attributes:
        flops: floating-point operations of a call, 2 per multiply-add; None where nobody counts them.
    """

    flops: float | None = None

    def load(self) -> None:
        """Import the libraries that `prepare` needs; their memory does not count."""

    def prepare(self) -> None:
        """Build what `run` needs; all memory that it takes counts."""

    def run(self) -> None:
        """Do it once; returns when it is done."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what `prepare` opened."""


def names(classes: int) -> list[str]:
    """Names for that many classes."""
    return [str(number) for number in range(classes)]


def random_batch(batch: int, size: Size, classes: int) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, H, W) and labels (B, H, W)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (batch, *size), generator=generator, dtype=torch.uint8)
    return images, labels


def random_logits(batch: int, size: Size, classes: int) -> tuple[Tensor, Tensor]:
    """Logits (B, C, H / 4, W / 4) that require a gradient, and labels uint8 (B, H, W)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, size[0] // 4, size[1] // 4, generator=generator)
    return logits.requires_grad_(), random_batch(batch, size, classes)[1]


def label_maps(images: int, size: Size, classes: int) -> tuple[Tensor, Tensor]:
    """Predicted and true class ids, uint8 (N, H, W)."""
    generator = torch.Generator().manual_seed(0)
    shape = (images, *size)
    predicted = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    return predicted, torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
