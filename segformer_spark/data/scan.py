"""Reads every file of a split once and gathers what checks, statistics and the manifest need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from segformer_spark.data.dataset import IGNORE_INDEX, Box, Mask, Sample, SegmentationDataset
from segformer_spark.data.files import RememberingReader
from segformer_spark.data.identity import FileState, file_state
from segformer_spark.data.image_header import ImageHeader, parse_header, profile_name
from segformer_spark.data.loader import check_labels
from segformer_spark.data.resize import resize_image
from segformer_spark.data.window import object_box
from segformer_spark.data.workers import iterate, worker_options
from segformer_spark.errors import DataError

OCCUPANCY_SIDE = 32
_BATCH = 8
_MIN_BOX_OVERLAP = 0.5
_BYTE, _DARK = 8, 16


@dataclass
class ItemFacts:
    """What one image and its mask are like.

    Attributes:
        image, mask: paths as the reader has them.
        image_sha256, mask_sha256: digests; empty when the file cannot be read.
        image_state, mask_state: of the files when they were read; zeros when they cannot be.
        size: (height, width); None when it cannot be decoded.
        pixels: per class.
        ignored: unlabelled pixels.
        box: around the foreground; None without foreground or background class.
        brightness: mean of the image from 0 to 255.
        occupancy: {class id: share of each cell that it takes, (OCCUPANCY_SIDE, OCCUPANCY_SIDE)}, of classes present.
        problems: what is wrong, each beginning with a path.
        other_box: what to say of a labelled box that does not fit the object in the mask; empty where it does.
        notes: what is left out or read in a certain way; the same words for the same thing in other items.
    """

    image: Path
    mask: Path
    image_sha256: str = ""
    mask_sha256: str = ""
    image_state: FileState = (0, 0, 0)
    mask_state: FileState = (0, 0, 0)
    size: tuple[int, int] | None = None
    pixels: list[int] = field(default_factory=list)
    ignored: int = 0
    box: Box | None = None
    brightness: float = 0.0
    occupancy: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    other_box: str = ""
    notes: list[str] = field(default_factory=list)


def scan(dataset: SegmentationDataset, num_workers: int, *, occupancy: bool = False) -> Iterator[ItemFacts]:
    """The facts of every item, in order; errors of single items are among them, not raised.

    Args:
        occupancy: fill `occupancy`, which takes 12 kB per image.
    """
    loader: DataLoader[Any] = DataLoader(
        _FactsView(dataset, occupancy),
        batch_size=_BATCH,
        collate_fn=list,
        **worker_options(num_workers),
    )
    for batch in iterate(loader):
        yield from batch


def inspect(dataset: SegmentationDataset, index: int, *, occupancy: bool = False) -> ItemFacts:
    """Read, digest and decode one item; each file is read once."""
    image_path, mask_path = dataset.files(index)
    facts = ItemFacts(image_path, mask_path)
    sample = None
    reader = RememberingReader()
    states = {path: file_state(path) for path in (image_path, mask_path) if path.is_file()}  # before they are read
    try:
        sample = dataset.load(index, reader)
        check_labels(sample.mask, len(dataset.classes), str(mask_path))
    except DataError as error:
        facts.problems.append(str(error))
    facts.image_sha256, facts.image_state = _stamp(image_path, states, reader)
    facts.mask_sha256, facts.mask_state = _stamp(mask_path, states, reader)
    with suppress(DataError, KeyError):  # what cannot be read is among the problems
        image, mask = (parse_header(reader.contents[path], path) for path in (image_path, mask_path))
        facts.notes = _notes(image, mask)
    if sample is not None and not facts.problems:
        facts.problems += _depth_problems(facts, image, sample)
        _measure(facts, sample, dataset, occupancy)
        box = dataset.box(index)
        facts.problems += _box_problems(facts, box)
        facts.other_box = _other_box(facts, box)
    return facts


class _FactsView(Dataset[ItemFacts]):
    def __init__(self, dataset: SegmentationDataset, occupancy: bool) -> None:
        self.dataset, self.occupancy = dataset, occupancy

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ItemFacts:
        return inspect(self.dataset, index, occupancy=self.occupancy)


def _stamp(path: Path, states: Mapping[Path, FileState], reader: RememberingReader) -> tuple[str, FileState]:
    """sha256 and state; of a file that could not be read, "" and zeros."""
    content = reader.contents.get(path)
    return ("", (0, 0, 0)) if content is None else (hashlib.sha256(content).hexdigest(), states[path])


def _notes(image: ImageHeader, mask: ImageHeader) -> list[str]:
    """What a reader of pixels does not see, or sees in its own way."""
    profile = "" if image.profile is None else profile_name(image.profile)
    found = {
        "have an alpha channel, which is left out": image.alpha,
        f"have {image.bits} bits a sample, of which the upper 8 are read": image.bits > 8,
        f"have {image.pages} pictures in one file, of which the first is read": image.pages > 1,
        f"have the colour profile {profile}, which is not applied": bool(profile) and "sRGB" not in profile,
        f"have EXIF orientation {image.orientation}": image.orientation != 1,
        f"have a mask with EXIF orientation {mask.orientation}": mask.orientation != 1,
    }
    return [note for note, holds in found.items() if holds]


def _depth_problems(facts: ItemFacts, image: ImageHeader, sample: Sample) -> list[str]:
    """Samples of 12 bits in 16 are read as nearly black."""
    highest = int(sample.image.max(initial=0))
    if image.bits <= _BYTE or highest >= _DARK:
        return []
    return [
        f"{facts.image}: of {image.bits} bits a sample only the lowest are used, so that the image is read as nearly "
        f"black (at most {highest} of 255); scale its values to the full range"
    ]


def _box_problems(facts: ItemFacts, box: Box | None) -> list[str]:
    """What is wrong with a labelled box: crops are cut around it."""
    if box is None or facts.size is None:
        return []
    height, width = facts.size
    if box[2] >= width or box[3] >= height:
        return [f"{facts.image}: the labelled box {box} reaches out of the image, which is {width}x{height}"]
    return []


def _other_box(facts: ItemFacts, box: Box | None) -> str:
    """Box and mask are labelled by different means, and SPARK's do not always agree: said, and no fault of the file."""
    if box is None or facts.box is None or _overlap(box, facts.box) >= _MIN_BOX_OVERLAP:
        return ""
    return f"{facts.image}: labelled box {box}, object in the mask {facts.box}"


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1 for i in (0, 1)]
    common = max(0, sides[0]) * max(0, sides[1])
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, other)]
    return common / (areas[0] + areas[1] - common)


def _measure(facts: ItemFacts, sample: Sample, dataset: SegmentationDataset, occupancy: bool) -> None:
    num_classes, background = len(dataset.classes), dataset.classes.background
    counts = np.bincount(sample.mask.ravel(), minlength=256)
    height, width = sample.mask.shape
    facts.size = (height, width)
    facts.pixels = [int(count) for count in counts[:num_classes]]
    facts.ignored = int(counts[IGNORE_INDEX])
    facts.brightness = float(sample.image.mean())
    if background is not None:
        facts.box = object_box(sample.mask, background)
        if facts.box is None:
            facts.problems.append(f"{facts.mask}: the mask is empty, it holds nothing but background")
    elif not any(facts.pixels):
        facts.problems.append(f"{facts.mask}: the mask is empty, none of its pixels has a label")
    if not occupancy:
        return
    facts.occupancy = {index: _cells(sample.mask, index) for index, count in enumerate(facts.pixels) if count}


def _cells(mask: Mask, index: int) -> NDArray[np.float32]:
    return resize_image((mask == index).astype(np.float32), (OCCUPANCY_SIDE, OCCUPANCY_SIDE))


def find_duplicates(facts: dict[str, list[ItemFacts]]) -> list[str]:
    """Images with equal bytes, within a split or across splits, one line per image beyond the first."""
    first: dict[str, tuple[str, Path]] = {}
    problems = []
    for split, items in facts.items():
        for item in items:
            if not item.image_sha256:
                continue
            if item.image_sha256 in first:
                other_split, other = first[item.image_sha256]
                problems.append(f"{item.image} ({split}): the same bytes as {other} ({other_split})")
            else:
                first[item.image_sha256] = (split, item.image)
    return problems
