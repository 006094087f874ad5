"""Images -> class ids, probabilities, logits or features of a model: the arithmetic behind every prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.data.dataset import Box, Mask
from segformer_spark.data.inference_view import InferenceView, refuse_crops_without_background
from segformer_spark.data.loader import EvalItem
from segformer_spark.data.resize import resize_mask
from segformer_spark.data.transforms import image_to_tensor, normalize_images
from segformer_spark.data.window import cut_mask
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.evaluation.augmented import Pass, passes_of
from segformer_spark.evaluation.crops import main_box, paste, shown_size
from segformer_spark.evaluation.decision import ARGMAX, Decision
from segformer_spark.evaluation.enlarged import (
    Keep,
    enlarged_ids,
    enlarged_probabilities,
    enlarged_scores,
    quantized,
)
from segformer_spark.evaluation.postprocessing import postprocess
from segformer_spark.evaluation.sliding import sliding_logits
from segformer_spark.kernels.select import select_arithmetic
from segformer_spark.models.interface import SegmentationModel

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

T = TypeVar("T")

_Passes = list[tuple[Pass, Tensor]]
"""Every pass and its logits (B, C, h, w)."""

_Found = tuple[Tensor, ...]
"""Class ids (H, W) or probabilities (C, H, W) of an image, and what else was made of its logits."""

_Finish = Callable[[_Passes, int, EvalItem], _Found]


class ImageLoss(Protocol):
    """The loss of an image by itself (`losses.build.WeightedSum`)."""

    @property
    def needs_full_size(self) -> bool: ...

    def of_coarse(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (1, C, h, w) and labels (1, H, W) -> scalar."""
        ...


@dataclass(frozen=True)
class Scored:
    """A prediction at native size.

    Attributes:
        ids: class ids, uint8 (H, W).
        confidence: mean over the pixels of the probability of their class, before postprocessing.
        probabilities: (C, H, W), as they were to be kept, or None.
    """

    ids: Tensor
    confidence: float
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class Predictor:
    """A model with the way it is asked.

    Attributes:
        view: what the model is shown; with its crops, `background` is the class outside of them.
        precision: fp32, tf32, bf16 or fp16 (autocast).
        tta: test-time augmentation, as `augmented.passes_of` reads it.
        flipped: the class id that each id becomes in an image that is flipped left to right; empty: all stay.
        decision: how class ids follow from logits.
        members: further models of an ensemble, each with its own view; the mean probability of all passes counts.
    """

    model: SegmentationModel
    device: torch.device
    view: InferenceView
    precision: str = "fp32"
    tta: str = "none"
    background: int | None = None
    flipped: tuple[int, ...] = ()
    decision: Decision = ARGMAX
    members: tuple[Predictor, ...] = ()

    def __post_init__(self) -> None:
        refuse_fp16_on_cpu(self.precision, self.device.type)
        refuse_crops_without_background(self.view.config, self.background)

    def predict(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Yield each item with its class ids, uint8 (H, W) at native size on the device.

        Logits are upsampled to the native size before the decision. With TTA and with several models the probability
        is the mean over all passes.
        """
        for item, found in self._by_batch(items, lambda *of: (self._class_ids(*of),)):
            yield item, found[0]

    def predict_with_loss(
        self, items: Iterable[list[EvalItem]], loss: ImageLoss
    ) -> Iterator[tuple[EvalItem, Tensor, Tensor]]:
        """The same, and the loss of each item's logits against its mask; with crops, within the crop. Without TTA.

        A loss that needs all logits at the labels' size sees masks of the input's size, as in training: at the native
        size of a large image they would not fit.
        """

        def both(passes: _Passes, row: int, item: EvalItem) -> _Found:
            assert item.mask is not None
            mask = item.mask if item.window is None else cut_mask(item.mask, item.window)
            if loss.needs_full_size:
                mask = resize_mask(mask, (item.pixels.shape[-2], item.pixels.shape[-1]))
            labels = torch.from_numpy(mask).to(self.device)
            ((_, logits),) = passes
            return self._class_ids(passes, row, item), loss.of_coarse(logits[row][None].float(), labels[None])

        for item, found in self._by_batch(items, both):
            yield item, *found  # type: ignore[misc]

    def probabilities(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Yield each item with its class probabilities, fp32 (C, H, W) at native size; their argmax is `predict`'s.

        With TTA they are the mean over the passes. With crops, what lies outside of the crop is background.
        """
        for item, found in self._by_batch(items, lambda *of: (self._class_probabilities(*of),)):
            yield item, found[0]

    def decided_in_turn(
        self, items: Iterable[list[EvalItem]], decisions: Sequence[Decision]
    ) -> Iterator[tuple[EvalItem, list[Tensor], list[float]]]:
        """Yield each item with its class ids by each decision and the seconds that each took; the model is asked once.

        With two_pass crops the first decision finds the crop.
        """
        deciders = [replace(self, decision=decision) for decision in decisions]
        seconds: dict[int, list[float]] = {}

        def each(passes: _Passes, row: int, item: EvalItem) -> _Found:
            ids, spent = [], []
            for one in deciders:
                began = time.perf_counter()
                ids.append(one._class_ids(passes, row, item))
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                spent.append(time.perf_counter() - began)
            seconds[item.index] = spent
            return tuple(ids)

        for item, found in self._by_batch(items, each):
            yield item, list(found), seconds.pop(item.index)

    def shown_logits(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor, Mask]]:
        """Yield each labelled item with its mean logits (C, h, w) and the mask of what they show; crops are cut."""

        def mean(passes: _Passes, row: int, item: EvalItem) -> _Found:
            assert item.mask is not None
            mask = item.mask if item.window is None else cut_mask(item.mask, item.window)
            return self._class_ids(passes, row, item), self._upright(passes, row)[0], torch.from_numpy(mask)

        for item, (_, logits, mask) in self._by_batch(items, mean):
            yield item, logits, mask.numpy()

    def scored(self, items: Iterable[list[EvalItem]], keep: Keep = None) -> Iterator[tuple[EvalItem, Scored]]:
        """Yield each item with its class ids, how probable they are, and its probabilities if they are to be kept."""
        for item, found in self._by_batch(items, lambda passes, row, item: self._scored(passes, row, item, keep=keep)):
            ids, confidence, *kept = found
            yield item, Scored(ids, float(confidence.mean(dtype=torch.float64)), kept[0] if kept else None)

    def with_confidence(
        self, items: Iterable[list[EvalItem]], other: Decision
    ) -> Iterator[tuple[EvalItem, Tensor, Tensor, Tensor]]:
        """Yield each item with its class ids, uint8 (H, W), how probable each is, fp32 (H, W), and the class ids by
        another decision."""
        decider = replace(self, decision=other)

        def both(passes: _Passes, row: int, item: EvalItem) -> _Found:
            return *self._scored(passes, row, item, keep=None), decider._class_ids(passes, row, item)

        for item, (ids, confidence, others) in self._by_batch(items, both):
            yield item, ids, confidence, others

    def features(
        self, items: Iterable[list[EvalItem]], names: Sequence[str]
    ) -> Iterator[tuple[EvalItem, dict[str, Tensor]]]:
        """Yield each item with maps (D, h, w) in fp32 of its whole, padded image, as `named_features` calls them.

        Raises:
            ConfigError: the model is shown windows, of which features are not joined, or there is no such map.
        """

        def named(images: Tensor) -> dict[str, Tensor]:
            with autocast(self.device, self.precision):
                maps = self.model.named_features(images)
            unknown = [name for name in names if name not in maps]
            if unknown:
                raise ConfigError(f"no features {', '.join(unknown)} of this model; there are {', '.join(maps)}")
            return {name: maps[name][0].float() for name in names}

        self.refuse_windows()
        yield from self._by_item(items, named)

    def logits(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Yield each item with the logits (C, h, w) of its whole image in fp32, as the model gives them."""
        return self._by_item(items, lambda images: self._logits(images, Pass())[0].float())

    def maps(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor, Tensor]]:
        """Yield each item with the logits (C, h, w) of its whole image and what the classifier saw, (D, h', w').

        Raises:
            ConfigError: the model is shown windows, of which features are not joined.
        """

        def both(images: Tensor) -> tuple[Tensor, Tensor]:
            with autocast(self.device, self.precision):
                logits, maps = self.model.logits_and_maps(images)
            self._refuse_nan(logits)
            return logits[0].float(), maps[0].float()

        self.refuse_windows()
        for item, (logits, maps) in self._by_item(items, both):
            yield item, logits, maps

    def refuse_windows(self) -> None:
        """Raise ConfigError when features cannot be had: those of windows are not joined."""
        if self.view.config.window is not None:
            raise ConfigError("features are those of whole images: add --set inference.window=null")

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def _by_batch(self, items: Iterable[list[EvalItem]], finish: _Finish) -> Iterator[tuple[EvalItem, _Found]]:
        """Each item with what `finish` makes of its passes."""
        with self._evaluating():
            for batch in items:
                with torch.inference_mode():
                    results = self._in_passes(batch, finish)
                yield from zip(batch, results, strict=True)

    def _by_item(self, items: Iterable[list[EvalItem]], forward: Callable[[Tensor], T]) -> Iterator[tuple[EvalItem, T]]:
        """Each item with what `forward` makes of its whole, normalized image (1, 3, H, W)."""
        with self._evaluating():
            for item in (item for batch in items for item in batch):
                with torch.inference_mode():
                    found = forward(self.normalized(item.pixels[None]))
                yield item, found

    def _in_passes(self, batch: list[EvalItem], finish: _Finish) -> list[_Found]:
        """What `finish` makes of every item's logits; with two_pass crops those of the second pass."""
        sizes = {tuple(one.pixels.shape for one in (item, *item.members)) for item in batch}
        # Images of several sizes do not stack.
        parts = [batch] if len(sizes) == 1 else [[item] for item in batch]
        results = [result for part in parts for result in self._predict_equal(part, finish)]
        if self.view.config.crops != "two_pass":
            return results
        predictions = [found[0] if found[0].ndim == 2 else found[0].argmax(0) for found in results]
        boxes = [main_box(ids.cpu().numpy(), self.background) for ids in predictions]
        boxed = [row for row, box in enumerate(boxes) if box is not None]
        if boxed:
            second = self._predict_equal([self._around(batch[row], boxes[row]) for row in boxed], finish)
            for row, result in zip(boxed, second, strict=True):
                results[row] = result
        return results

    def _around(self, item: EvalItem, box: Box | None) -> EvalItem:
        assert item.image is not None
        assert box is not None
        pixels, window = self.view.around(item.image, box)
        shown = replace(item, pixels=image_to_tensor(pixels), window=window)
        return replace(shown, members=(replace(shown, members=()),) * len(self.members))

    def _predict_equal(self, batch: list[EvalItem], finish: _Finish) -> list[_Found]:
        """What `finish` makes of items with pixels of one size."""
        passes = self._passes(torch.stack([item.pixels for item in batch]))
        for number, member in enumerate(self.members):
            passes += member._passes(torch.stack([item.members[number].pixels for item in batch]))
        return [finish(passes, row, item) for row, item in enumerate(batch)]

    def _passes(self, pixels: Tensor) -> _Passes:
        images = self.normalized(pixels)
        return [(one, self._logits(images, one)) for one in passes_of(self.tta)]

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> what the model takes, on its device."""
        return normalize_images(pixels.to(self.device), select_arithmetic("auto", self.device))

    def _logits(self, images: Tensor, shown: Pass) -> Tensor:
        config = self.view.config
        images = shown.show(images)
        with autocast(self.device, self.precision):
            if config.window is None:
                logits: Tensor = self.model(images)
            else:
                stride = self.model.output_stride
                logits = sliding_logits(
                    self.model, images, config.window, config.overlap, stride, weights=config.window_weights
                )
        self._refuse_nan(logits)
        return logits

    def _refuse_nan(self, logits: Tensor) -> None:
        """Raise UserError where enlarging would make zeros of NaN."""
        if bool(logits.amax().isnan()):
            raise UserError(
                f"the model's logits are not numbers (NaN) in {self.precision}: its weights are damaged, or it needs "
                "another precision (--precision; in training training.precision)"
            )

    def _upright(self, passes: _Passes, row: int) -> list[Tensor]:
        """One image's logits of every pass in fp32, turned upright, with sided classes exchanged."""
        return [self.exchanged(shown.undo(logits[row].float()), shown) for shown, logits in passes]

    def exchanged(self, logits: Tensor, shown: Pass) -> Tensor:
        """Upright logits (C, ...) of a pass, with sided classes exchanged where it mirrors."""
        return logits[list(self.flipped)] if self.flipped and shown.mirrors else logits

    def whole_passes(self, pixels: Tensor) -> list[Tensor]:
        """uint8 (3, H, W) -> upright logits (C, h, w) of every pass."""
        return self._upright(self._passes(pixels[None]), 0)

    def window_logits(self, images: Tensor) -> Tensor:
        """Normalised windows (B, 3, H, W) -> logits (B, C, h, w) in fp32."""
        with autocast(self.device, self.precision):
            logits: Tensor = self.model(images)
        self._refuse_nan(logits)
        return logits.float()

    def _class_ids(self, passes: _Passes, row: int, item: EvalItem) -> Tensor:
        ids = enlarged_ids(self._upright(passes, row), shown_size(item), self.decision)
        if item.window is not None:
            assert self.background is not None
            whole = torch.full(item.size, self.background, dtype=ids.dtype, device=ids.device)
            ids = paste(ids, whole, item.window)
        return self._postprocessed(ids)

    def _postprocessed(self, ids: Tensor) -> Tensor:
        options = self.decision.postprocessing
        if not options.is_active:
            return ids
        return torch.from_numpy(postprocess(ids.cpu().numpy(), options, self.background)).to(ids.device)

    def _scored(self, passes: _Passes, row: int, item: EvalItem, *, keep: Keep) -> _Found:
        """Class ids, how probable each is, and probabilities if they are kept."""
        ids, confidence, kept = enlarged_scores(self._upright(passes, row), shown_size(item), keep, self.decision)
        if item.window is not None:
            assert self.background is not None
            # Outside of the crop is background, and certain.
            ids = paste(ids, ids.new_full(item.size, self.background), item.window)
            confidence = paste(confidence, confidence.new_ones(item.size), item.window)
            if kept is not None:
                whole = kept.new_zeros(len(kept), *item.size)
                whole[self.background] = quantized(torch.ones((), device=ids.device), keep)
                kept = paste(kept, whole, item.window)
        ids = self._postprocessed(ids)
        return (ids, confidence) if kept is None else (ids, confidence, kept)

    def _class_probabilities(self, passes: _Passes, row: int, item: EvalItem) -> Tensor:
        probabilities = enlarged_probabilities(self._upright(passes, row), shown_size(item))
        if item.window is None:
            return probabilities
        assert self.background is not None
        whole = probabilities.new_zeros(len(probabilities), *item.size)
        whole[self.background] = 1.0
        return paste(probabilities, whole, item.window)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Forward passes in bf16 or fp16 arithmetic; nothing for fp32 and tf32 (`devices.set_float32_products`)."""
    return nullcontext() if precision in ("fp32", "tf32") else torch.autocast(device.type, dtype=_AUTOCAST[precision])
