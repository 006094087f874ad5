"""What a contestant's task looks like, and the random inputs that all contestants get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Work:
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


def names(classes: int) -> list[str]:
    """Names for that many classes."""
    return [str(number) for number in range(classes)]


def random_batch(task: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, S, S) and labels (B, S, S)."""
    generator = torch.Generator().manual_seed(0)
    batch, side = task["batch"], task["image_size"]
    images = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, task["classes"], (batch, side, side), generator=generator, dtype=torch.uint8)
    return images, labels


def random_logits(task: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits (B, C, S / 4, S / 4) with a gradient to be found, and labels uint8 (B, S, S)."""
    generator = torch.Generator().manual_seed(0)
    batch, side = task["batch"], task["image_size"]
    logits = torch.randn(batch, task["classes"], side // 4, side // 4, generator=generator)
    return logits.requires_grad_(), random_batch(task)[1]


def label_maps(task: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Predicted and true class ids, uint8 (N, S, S)."""
    generator = torch.Generator().manual_seed(0)
    shape = (task["images"], task["image_size"], task["image_size"])
    predicted = torch.randint(0, task["classes"], shape, generator=generator, dtype=torch.uint8)
    return predicted, torch.randint(0, task["classes"], shape, generator=generator, dtype=torch.uint8)
