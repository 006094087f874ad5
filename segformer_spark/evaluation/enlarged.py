"""Logits on the model's grid -> class ids and probabilities at native size, a band of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from segformer_spark.evaluation.decision import ARGMAX, Decision, image_thresholds
from segformer_spark.kernels.class_ids import class_ids
from segformer_spark.kernels.select import select_arithmetic
from segformer_spark.ops.interpolation import bands, enlarge_rows, enlarged_bands, source_rows

Keep = Literal["uint8", "float16", "float32"] | None
"""How probabilities are kept: 255 steps, half or single precision, or not at all."""

_BAND_VALUES, _MIN_ROWS = 4_000_000, 16
"""Enlarged logits that exist at a time: at 150 classes a whole image of 1024 pixels would take 630 MB."""


def enlarged_ids(passes: Sequence[Tensor], size: tuple[int, int], decision: Decision = ARGMAX) -> Tensor:
    """Class ids at `size` from logits that are enlarged first, a band of rows at a time; uint8, or int32 if need be.

    Args:
        passes: logits (C, h, w) in fp32, of any h and w; with several, their mean probability decides.
        decision: by argmax, or as it says, but for its postprocessing.
    """
    classes = len(passes[0])
    dtype = torch.uint8 if classes <= 256 else torch.int32
    ids = torch.empty(size, dtype=dtype, device=passes[0].device)
    passes, thresholds = _prepared(passes, decision)
    if len(passes) == 1 and thresholds is not None:
        # Interpolation is linear, its weights add up to 1: what is subtracted before may as well be after.
        passes, thresholds = [passes[0] - thresholds.log()[:, None, None]], None
    arithmetic = select_arithmetic("auto", ids.device)
    if arithmetic != "cpu" and len(passes) == 1:
        return class_ids(passes[0][None], size, arithmetic)[0]
    for rows, scores in _enlarged_rows(passes, size):
        whole = scores[0] if len(scores) == 1 else torch.stack([one.softmax(0) for one in scores]).sum(0)
        ids[rows] = _over(whole, thresholds).argmax(0).to(dtype)
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
    passes: Sequence[Tensor], size: tuple[int, int], keep: Keep, decision: Decision = ARGMAX
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Class ids (H, W), how probable each is (H, W), and all probabilities (C, H, W) if they are kept.

    Args:
        passes, decision: those of `enlarged_ids`; the temperature makes the probabilities.
    """
    passes, thresholds = _prepared(passes, decision)
    ids = torch.empty(size, dtype=torch.uint8, device=passes[0].device)
    confidence = torch.empty(size, device=ids.device)
    kept = None
    if keep is not None:
        kept = torch.empty(len(passes[0]), *size, dtype=getattr(torch, keep), device=ids.device)
    for rows, scores in _enlarged_rows(passes, size):
        ids[rows], confidence[rows], probabilities = decided(scores, thresholds)
        if kept is not None:
            kept[:, rows] = quantized(probabilities, keep)
    return ids, confidence, kept


def _prepared(passes: Sequence[Tensor], decision: Decision) -> tuple[list[Tensor], Tensor | None]:
    """Finite logits over the temperature, and the threshold (C,) of each class; None where all are equal."""
    # In a product with zeros an infinite score would spread over its row and column.
    finite = [torch.nan_to_num(logits) for logits in passes]
    if decision.temperature != 1:
        finite = [logits / decision.temperature for logits in finite]
    return finite, None if decision.is_argmax else image_thresholds(decision, finite)


def _over(scores: Tensor, thresholds: Tensor | None) -> Tensor:
    return scores if thresholds is None else scores / thresholds[:, None, None]


def _enlarged_rows(passes: Sequence[Tensor], size: tuple[int, int]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Bands of rows of `size`, and the logits (C, rows, W) of every pass there."""
    classes = len(passes[0])
    for rows in bands(size[0], max(_MIN_ROWS, _BAND_VALUES // (classes * size[1]))):
        yield rows, [_rows(logits, rows, size) for logits in passes]


def _rows(logits: Tensor, rows: slice, size: tuple[int, int]) -> Tensor:
    length = logits.shape[1]
    return enlarge_rows(logits[:, source_rows(length, size[0], rows.start, rows.stop)], length, rows, size)


def decided(scores: Sequence[Tensor], thresholds: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (C, H, W) of every pass -> class ids (H, W), uint8, how probable each is, and mean probabilities.

    Args:
        thresholds: (C,), of which the class exceeds its own by the largest factor; None: all are equal.
    """
    if len(scores) == 1:
        probabilities = scores[0].softmax(0)
        ranked = scores[0] if thresholds is None else scores[0] - thresholds.log()[:, None, None]
    else:
        total = torch.stack([one.softmax(0) for one in scores]).sum(0)
        probabilities, ranked = total / len(scores), _over(total, thresholds)
    ids = ranked.argmax(0)
    return ids.to(torch.uint8), probabilities.gather(0, ids[None])[0], probabilities


def quantized(probabilities: Tensor, keep: Keep) -> Tensor:
    """Probabilities as they are kept: uint8 of 0 to 255, or floating-point."""
    if keep == "uint8":
        return (probabilities * 255).round().to(torch.uint8)
    return probabilities.to(getattr(torch, keep or "float32"))
