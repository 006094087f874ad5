"""Samples -> batches: training batches of one rank, and evaluation items of mixed native sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import IGNORE_INDEX, Box, Image, Mask, Sample, SegmentationDataset
from segformer_spark.data.decode import AS_STORED, Decoding, read_image
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.sampler import SampleKey, TrainBatchSampler
from segformer_spark.data.transforms import TrainTransform, image_to_tensor, load_native
from segformer_spark.data.window import Window
from segformer_spark.data.workers import begin, end_workers, iterate, worker_options
from segformer_spark.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class TrainBatch:
    """`images` uint8 (B, 3, S, S), `masks` uint8 (B, S, S), and the image `files` (B) for error messages, or none."""

    images: torch.Tensor
    masks: torch.Tensor
    files: tuple[str, ...] = ()

    def pin_memory(self) -> TrainBatch:
        return TrainBatch(self.images.pin_memory(), self.masks.pin_memory(), self.files)


@dataclass(frozen=True)
class EvalItem:
    """One image resized for the model, with what is needed at native size.

    Attributes:
        index: position in the data set.
        pixels: uint8 (3, h, w).
        size: native (height, width).
        mask: uint8 native mask, None for unlabelled images.
        window: the part of the native image that `pixels` shows; None for all of it.
        image: the native image, where a second pass will cut from it.
        members: the same image as further models of an ensemble see it.
    """

    index: int
    pixels: torch.Tensor
    size: tuple[int, int]
    mask: Mask | None
    window: Window | None = None
    image: Image | None = None
    members: tuple[EvalItem, ...] = ()


class _View(Dataset[Any], Generic[T]):
    """Items by key. Errors of data travel as values: torch would wrap them in the loader process's traceback."""

    def __getitem__(self, key: Any) -> T | DataError:
        try:
            return self.load(key)
        except DataError as error:
            return error

    def load(self, key: Any) -> T:
        raise NotImplementedError


class _TrainView(_View[tuple[torch.Tensor, torch.Tensor, str]]):
    def __init__(self, dataset: SegmentationDataset, transform: TrainTransform) -> None:
        self.dataset, self.transform = dataset, transform

    def load(self, key: SampleKey) -> tuple[torch.Tensor, torch.Tensor, str]:
        epoch, index = key
        out = fed_sample(self.dataset, self.transform, epoch, index)
        return image_to_tensor(out.image), torch.from_numpy(out.mask), str(self.dataset.files(index)[0])


class _EvalView(_View[EvalItem]):
    def __init__(self, dataset: SegmentationDataset, config: EvalLoading) -> None:
        self.dataset, self.config = dataset, config

    def load(self, index: int) -> EvalItem:
        sample = self.dataset.load(index)
        check_labels(sample.mask, len(self.dataset.classes), self.dataset.sample_id(index))
        return _items(index, sample.image, sample.mask, self.dataset.box(index), self.config)


class _FileView(_View[EvalItem]):
    def __init__(self, files: Sequence[Path], config: EvalLoading, boxes: Mapping[str, Box]) -> None:
        self.files, self.config, self.boxes = files, config, boxes

    def load(self, index: int) -> EvalItem:
        file = self.files[index]
        image = read_image(file, decoding=self.config.decoding)
        item = _items(index, image, None, self.boxes.get(file.name), self.config)
        return replace(item, image=image) if self.config.keep_image else item


def _items(index: int, image: Image, mask: Mask | None, box: Box | None, config: EvalLoading) -> EvalItem:
    """What every model of an ensemble is shown."""
    item = eval_item(index, image, mask, box, config.view)
    if not config.members:
        return item
    return replace(item, members=tuple(eval_item(index, image, None, box, view) for view in config.members))


def eval_item(index: int, image: Image, mask: Mask | None, box: Box | None, view: InferenceView) -> EvalItem:
    height, width = image.shape[:2]
    if view.config.crops == "box":
        assert box is not None, "who asks for crops around boxes checks that there are boxes"
        pixels, window = view.around(image, box)
        return EvalItem(index, image_to_tensor(pixels), (height, width), mask, window)
    native = image if view.config.crops == "two_pass" else None
    return EvalItem(index, image_to_tensor(view.whole(image)), (height, width), mask, None, native)


def fed_sample(dataset: SegmentationDataset, transform: TrainTransform, epoch: int, index: int) -> Sample:
    """A training sample as the model is fed with it in `epoch`."""
    partners = transform.partners(epoch, index, len(dataset))
    samples = [load_native(dataset, number) for number in (index, *partners)]
    for one in samples:
        check_labels(one.sample.mask, len(dataset.classes), one.name)
    return transform(samples, epoch, index)


def check_labels(mask: Mask, num_classes: int, name: str) -> None:
    """Raise DataError for an id that is no class: on a GPU it would be an assert much later."""
    if mask.max(initial=0) < num_classes:  # spares the selection for masks without ignored pixels
        return
    highest = int(mask[mask != IGNORE_INDEX].max(initial=0))
    if highest >= num_classes:
        raise DataError(f"{name}: the mask holds label {highest}, the data set has classes 0..{num_classes - 1}")


class TrainLoader:
    """Training batches of one rank, from the sampler's position to the epoch's end."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        config: Config,
        sampler: TrainBatchSampler,
        *,
        pin: bool,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare the loader; its processes start with the first iteration.

        Args:
            interrupted: whether somebody asked to stop; the wait for a batch ends then (LoadingInterrupted).
        """
        transform = TrainTransform.of(config, dataset.classes.names)
        self.sampler = sampler
        workers = config.data.num_workers
        self._loader: DataLoader[Any] = DataLoader(
            _TrainView(dataset, transform),
            batch_sampler=sampler,
            collate_fn=_collate_train,
            persistent_workers=workers > 0,
            pin_memory=pin,
            **worker_options(workers),
        )
        self._running: Iterator[Any] | None = None
        self._interrupted = interrupted

    def __iter__(self) -> Iterator[TrainBatch]:
        self._running = begin(self._loader, self._interrupted)
        return map(_raise_if_error, self._running)

    def close(self) -> None:
        """End the loader's processes."""
        end_workers(self._running)


def eval_loader(dataset: SegmentationDataset, indices: Sequence[int], config: EvalLoading) -> Iterator[list[EvalItem]]:
    """Batches of labelled items for the given indices."""
    return _iterate(_EvalView(dataset, config), indices, config)


def file_loader(
    files: Sequence[Path], indices: Sequence[int], config: EvalLoading, boxes: Mapping[str, Box] | None = None
) -> Iterator[list[EvalItem]]:
    """Batches of unlabelled items, from image files; `boxes` by file name, for crops around boxes."""
    return _iterate(_FileView(files, config, boxes or {}), indices, config)


@dataclass(frozen=True)
class EvalLoading:
    """How evaluation and inference load: what the model is shown, images at a time, loader processes, and how files
    without a data set are decoded. `keep_image`: items of files carry their native image. `members`: what further
    models of an ensemble are shown.
    """

    view: InferenceView
    batch_size: int
    num_workers: int
    decoding: Decoding = AS_STORED
    keep_image: bool = False
    members: tuple[InferenceView, ...] = ()


def _iterate(view: _View[EvalItem], indices: Sequence[int], config: EvalLoading) -> Iterator[list[EvalItem]]:
    loader: DataLoader[Any] = DataLoader(
        view,
        batch_size=config.batch_size,
        sampler=indices,
        collate_fn=_collate_list,
        **worker_options(config.num_workers),
    )
    return map(_raise_if_error, iterate(loader))


def _collate_train(items: list[Any]) -> TrainBatch | DataError:
    error = _first_error(items)
    if error is not None:
        return error
    images, masks, files = zip(*items, strict=True)
    return TrainBatch(torch.stack(images), torch.stack(masks), files)


def _collate_list(items: list[Any]) -> list[EvalItem] | DataError:
    return _first_error(items) or items


def _first_error(items: list[Any]) -> DataError | None:
    return next((item for item in items if isinstance(item, DataError)), None)


def _raise_if_error(batch: T | DataError) -> T:
    if isinstance(batch, DataError):
        raise batch
    return batch
