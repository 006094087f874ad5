"""Prediction of images that do not fit into memory: read, predicted and written a band of rows at a time.

The result is that of `Predictor` on the whole image, to rounding. Whole images are resized in one pass over the file;
sliding windows run over bands of the native image, and rows of logits that no further window reaches are enlarged,
written and forgotten.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.dataset import Image, Mask
from segformer_spark.data.image_header import ImageHeader
from segformer_spark.data.large_image import LargeImage
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.overlay import overlay
from segformer_spark.data.png import PngWriter, write_png
from segformer_spark.data.transforms import image_to_tensor
from segformer_spark.evaluation.augmented import passes_of
from segformer_spark.evaluation.decision import ARGMAX, Decision, image_thresholds
from segformer_spark.evaluation.enlarged import decided
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.evaluation.sliding import window_starts, window_weights
from segformer_spark.files.atomic import atomic_file
from segformer_spark.ops.interpolation import source_position, source_rows
from segformer_spark.prediction.results import Results, Row, overlay_size

LARGE_PIXELS = 25_000_000
"""Images of more pixels are predicted in bands where that is possible."""

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
"""Formats that can be read in bands."""

_BAND_VALUES = 1_000_000


def why_not_in_bands(
    header: ImageHeader,
    view: InferenceConfig,
    tta: str,
    *,
    upright: bool,
    keeps: bool,
    decision: Decision = ARGMAX,
    num_models: int = 1,
) -> str | None:
    """Why an image cannot be predicted in bands; None where it can."""
    if header.format not in FORMATS:
        return f"{header.format} files are read as a whole"
    if upright and header.orientation != 1:
        return "its EXIF tag turns it"
    if view.crops != "none":
        return f"crops: {view.crops} needs the whole image"
    if view.resize == "native" and view.window is None:
        return "the model is shown whole images at native size (--set inference.window=1024 shows windows)"
    if any(one.scale != 1 for one in passes_of(tta)):
        return f"--tta {tta} needs the whole image at every scale"
    if view.window is not None and any(-2 in one.axes or one.turns for one in passes_of(tta)):
        return f"windows from below or from the side, as in --tta {tta}, need the whole image"
    if num_models > 1:
        return "several models are asked"
    if view.window is not None and decision.rule == "expected_iou":
        return "the saved decision asks for the expected IoU of the whole image"
    if decision.postprocessing.is_active:
        return "the saved decision corrects the parts of the whole image"
    return "its probabilities are kept" if keeps else None


@dataclass
class _Tally:
    """What is counted while rows go by."""

    num_classes: int
    confidence: float = 0.0
    pixels: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.num_classes, np.int64)

    def add(self, ids: Mask, confidence: Tensor) -> None:
        self.pixels += np.bincount(ids.ravel(), minlength=self.num_classes)
        self.confidence += float(confidence.sum(dtype=torch.float64))


def predict_large(
    predictor: Predictor,
    image: LargeImage,
    digests: tuple[str, str],
    name: str,
    results: Results,
    advance: Callable[[int], None],
) -> None:
    """Predict one image into its files.

    Args:
        digests: sha256 of the image's file, and of the settings.
        name: of its results.
        advance: called with the number of rows done.

    Raises:
        DataError: the file is damaged; none of its files is written then.
    """
    small = _SmallIds(image.size)
    tally = _Tally(len(results.classes))
    orientation = image.header.orientation
    # The text of the ids' file is known when all rows are: they wait in a file of their own.
    with contextlib.ExitStack() as files:
        waiting = results.path("ids", name)
        raw = files.enter_context(_waiting_rows(waiting, image.size))
        color = None
        if "color" in results.kinds:
            stream = files.enter_context(atomic_file(results.path("color", name)))
            palette = results.classes.colors
            color = files.enter_context(PngWriter(stream, image.size, palette=palette, orientation=orientation))
        for rows, ids, confidence in _decided_rows(predictor, image):
            raw[rows] = ids
            if color is not None:
                color.write(ids)
            small.add(rows.start, ids)
            tally.add(ids, confidence)
            advance(len(ids))
        pixels = tuple(int(number) for number in tally.pixels)
        height, width = image.size
        row = Row(*digests, height, width, round(tally.confidence / (height * width), 4), pixels)
        if "overlay" in results.kinds:
            shown = overlay(image.resized(overlay_size(image.size)), small.ids, results.classes)
            write_png(results.path("overlay", name), turn_upright(shown, orientation))
        with (
            atomic_file(results.path("ids", name)) as out,
            PngWriter(out, image.size, orientation=orientation, text=results.text(row)) as png,
        ):
            for top in range(0, height, 256):
                png.write(np.asarray(raw[top : top + 256]))


@contextlib.contextmanager
def _waiting_rows(path: Path, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Rows (H, W) in a file beside `path`, which is removed in the end."""
    temporary = path.with_name(f".{path.name}.rows.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield np.memmap(temporary, np.uint8, "w+", shape=size)
    finally:
        temporary.unlink(missing_ok=True)


class _SmallIds:
    """Class ids at the overlay's size: those of the pixels in the middle of its pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        target = overlay_size(size)
        self.rows, self.columns = (
            np.minimum(((np.arange(own) + 0.5) * length / own).astype(np.int64), length - 1)
            for own, length in zip(target, size, strict=True)
        )
        self.ids = np.zeros(target, np.uint8)

    def add(self, top: int, ids: Mask) -> None:
        inside = np.flatnonzero((self.rows >= top) & (self.rows < top + len(ids)))
        self.ids[inside] = ids[self.rows[inside] - top][:, self.columns]


def _decided_rows(predictor: Predictor, image: LargeImage) -> Iterator[tuple[slice, Mask, Tensor]]:
    """Class ids (h, W) of bands of rows, from top to bottom, and how probable each is."""
    view, config = predictor.view, predictor.view.config
    decision = predictor.decision
    with torch.inference_mode():
        if config.resize == "native":
            assert config.window is not None
            yield from _rows_of(_window_passes(predictor, image, config.window), image.size, decision)
        else:
            shown = image.resized(view.whole_size(image.size))
            passes = predictor.whole_passes(image_to_tensor(shown))
            length = passes[0].shape[1]
            yield from _rows_of(iter([(length, slice(0, length), passes)]), image.size, decision)


def _rows_of(
    parts: Iterator[tuple[int, slice, list[Tensor]]], size: tuple[int, int], decision: Decision
) -> Iterator[tuple[slice, Mask, Tensor]]:
    """Bands of the image, as soon as the rows of logits that they are made of are final.

    Args:
        parts: (rows of the whole grid, the rows that are given, logits (C, rows, w) of every pass), from top to bottom;
            together they cover the grid.
    """
    done = 0
    kept: list[Tensor] = []
    first = 0
    thresholds = None
    for length, rows, passes in parts:
        passes = [one / decision.temperature for one in passes] if decision.temperature != 1 else passes
        if thresholds is None and not decision.is_argmax:
            thresholds = image_thresholds(decision, passes)
        kept = [torch.cat([old, new], 1) for old, new in zip(kept, passes, strict=True)] if kept else passes
        final = rows.stop
        band = max(16, _BAND_VALUES // (len(passes[0]) * size[1]))
        while done < size[0]:
            stop = min(done + band, size[0])
            needed = source_rows(length, size[0], done, stop)
            if needed.stop > final:
                break
            scores = [_enlarged(one, length, slice(done, stop), size, first) for one in kept]
            ids, confidence, _ = decided(scores, thresholds)
            yield slice(done, stop), ids.cpu().numpy(), confidence
            done = stop
        keep_from = source_rows(length, size[0], min(done, size[0] - 1), size[0]).start
        kept, first = [one[:, keep_from - first :] for one in kept], keep_from
    assert done == size[0], f"{size[0] - done} rows were not predicted"


def _enlarged(logits: Tensor, length: int, rows: slice, size: tuple[int, int], first: int) -> Tensor:
    """Rows of a map enlarged to `size`: torch's bilinear interpolation, of four neighbours.

    A product with a matrix, as `ops.interpolation` has it, would have 10^8 entries at 20,000 pixels.

    Args:
        logits: (C, h, w), of which row 0 is row `first` of a map with `length` rows.
    """
    low, high, share = (part[rows] for part in _positions(length, size[0], logits.device))
    left, right, part = _positions(logits.shape[2], size[1], logits.device)
    upper, lower = logits[:, low - first], logits[:, high - first]
    narrow = torch.lerp(upper, lower, share[:, None])
    return torch.lerp(narrow[:, :, left], narrow[:, :, right], part)


@functools.lru_cache(maxsize=4)
def _positions(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Per row of `size`: the row of `length` before it, the one after it, and the share of this."""
    places = [source_position(length, size, row) for row in range(size)]
    low = torch.tensor([place for place, _ in places], device=device)
    share = torch.tensor([fraction for _, fraction in places], device=device)
    return low, (low + 1).clamp_(max=length - 1), share


def _window_passes(predictor: Predictor, image: LargeImage, window: int) -> Iterator[tuple[int, slice, list[Tensor]]]:
    """Final rows of the mean logits of sliding windows, for every pass."""
    stride, overlap = predictor.model.output_stride, predictor.view.config.overlap
    height, width = image.size
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    tops, lefts = (window_starts(length, window, overlap, stride) for length in (height, width))
    flips, weights = passes_of(predictor.tta), predictor.view.config.window_weights
    sums: list[tuple[Tensor, Tensor]] = []
    base = 0
    for index, band in enumerate(_window_bands(image, tops, window)):
        top = tops[index] // stride
        high = min(math.ceil(len(band) / stride), rows - top)
        normalized = predictor.normalized(image_to_tensor(band)[None])
        for number, shown in enumerate(flips):
            images = shown.show(normalized)
            own_times = torch.zeros(high, columns, device=images.device)
            own: Tensor | None = None
            for left in lefts:
                logits = predictor.window_logits(images[..., left : left + window])
                if own is None:
                    own = logits.new_zeros(logits.shape[1], high, columns)
                column = left // stride
                wide = min(logits.shape[-1], columns - column)
                weight = window_weights(weights, logits)[:high, :wide]
                own[:, :, column : column + wide] += logits[0, :, :high, :wide] * weight
                own_times[:, column : column + wide] += weight
            assert own is not None
            own, own_times = own.flip(shown.axes), own_times.flip(shown.axes)
            if len(sums) <= number:
                sums.append((own.new_zeros(len(own), 0, columns), own.new_zeros(0, columns)))
            total, times = sums[number]
            sums[number] = _added(total, own, top - base), _added(times, own_times, top - base)
        final = rows if index + 1 == len(tops) else tops[index + 1] // stride
        done = final - base
        means = [total[:, :done] / times[:done] for total, times in sums]
        yield rows, slice(base, final), [predictor.exchanged(m, one) for m, one in zip(means, flips, strict=True)]
        sums = [(total[:, done:], times[done:]) for total, times in sums]
        base = final


def _added(rows: Tensor, more: Tensor, at: int) -> Tensor:
    """`rows` with `more` added from row `at` on; longer where that reaches beyond."""
    missing = at + more.shape[-2] - rows.shape[-2]
    if missing > 0:
        rows = torch.cat([rows, rows.new_zeros(*rows.shape[:-2], missing, rows.shape[-1])], -2)
    rows[..., at : at + more.shape[-2], :] += more
    return rows


def _window_bands(image: LargeImage, tops: list[int], window: int) -> Iterator[Image]:
    """For each top the rows of the windows that begin there; every row of the file is read once."""
    held: Image | None = None
    first = 0
    source = image.bands()
    for top in tops:
        bottom = min(top + window, image.size[0])
        while held is None or first + len(held) < bottom:
            band = next(source)
            held = band if held is None else np.concatenate([held, band])
        held, first = held[top - first :], top
        yield held[: bottom - top]
