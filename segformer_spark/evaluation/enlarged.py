"""Logits on the model's grid -> class ids and probabilities at native size, a band of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from segformer_spark.kernels.class_ids import class_ids
from segformer_spark.kernels.select import select_arithmetic
from segformer_spark.ops.interpolation import bands, enlarge_rows, enlarged_bands, source_rows

Keep = Literal["uint8", "float16", "float32"] | None
"""How probabilities are kept: 255 steps, half or single precision, or not at all."""

_BAND_VALUES, _MIN_ROWS = 4_000_000, 16
"""Enlarged logits that exist at a time: at 150 classes a whole image of 1024 pixels would take 630 MB."""


def enlarged_ids(passes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Class ids at `size` from logits that are enlarged first, a band of rows at a time; uint8, or int32 if need be.

    Args:
        passes: logits (C, h, w) in fp32; with several, their mean probability decides.
    """
    classes = len(passes[0])
    dtype = torch.uint8 if classes <= 256 else torch.int32
    ids = torch.empty(size, dtype=dtype, device=passes[0].device)
    passes = _finite(passes)
    arithmetic = select_arithmetic("auto", ids.device)
    if arithmetic != "cpu" and len(passes) == 1:
        return class_ids(passes[0][None], size, arithmetic)[0]
    for rows, scores in _enlarged_rows(passes, size):
        whole = scores[0] if len(scores) == 1 else torch.stack([one.softmax(0) for one in scores]).sum(0)
        ids[rows] = whole.argmax(0).to(dtype)
    return ids


def enlarged_probabilities(passes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Class probabilities (C, H, W) at `size` from logits that are enlarged first; the mean over the passes.

    Args:
        passes: logits (C, h, w) in fp32.
    """
    total = torch.zeros(len(passes[0]), *size, device=passes[0].device)
    for logits in passes:
        for rows, band in enlarged_bands(logits, size):
            total[:, rows] += band.softmax(0)
    return total / len(passes)


def enlarged_scores(
    passes: Sequence[Tensor], size: tuple[int, int], keep: Keep
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Class ids (H, W), how probable each is (H, W), and all probabilities (C, H, W) if they are kept.

    Args:
        passes: logits (C, h, w) in fp32; with several, their mean probability decides.
    """
    passes = _finite(passes)
    ids = torch.empty(size, dtype=torch.uint8, device=passes[0].device)
    confidence = torch.empty(size, device=ids.device)
    kept = None
    if keep is not None:
        kept = torch.empty(len(passes[0]), *size, dtype=getattr(torch, keep), device=ids.device)
    for rows, scores in _enlarged_rows(passes, size):
        ids[rows], probabilities = decided(scores)
        confidence[rows] = probabilities.amax(0)
        if kept is not None:
            kept[:, rows] = quantized(probabilities, keep)
    return ids, confidence, kept


def _finite(passes: Sequence[Tensor]) -> list[Tensor]:
    # In a product with zeros an infinite score would spread over its row and column.
    return [torch.nan_to_num(logits) for logits in passes]


def _enlarged_rows(passes: Sequence[Tensor], size: tuple[int, int]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Bands of rows of `size`, and the logits (C, rows, W) of every pass there."""
    classes, length, _ = passes[0].shape
    for rows in bands(size[0], max(_MIN_ROWS, _BAND_VALUES // (classes * size[1]))):
        needed = source_rows(length, size[0], rows.start, rows.stop)
        yield rows, [enlarge_rows(logits[:, needed], length, rows, size) for logits in passes]


def decided(scores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (C, ...) of every pass -> class ids (...), uint8, and mean probabilities (C, ...)."""
    if len(scores) == 1:
        return scores[0].argmax(0).to(torch.uint8), scores[0].softmax(0)
    total = torch.stack([one.softmax(0) for one in scores]).sum(0)
    return total.argmax(0).to(torch.uint8), total / len(scores)


def quantized(probabilities: Tensor, keep: Keep) -> Tensor:
    """Probabilities as they are kept: uint8 of 0 to 255, or floating-point."""
    if keep == "uint8":
        return (probabilities * 255).round().to(torch.uint8)
    return probabilities.to(getattr(torch, keep or "float32"))
