"""What the labels of a split say about themselves: classes that never occur, pixels that do not count, a single class.

Each is legal in a mask and mostly a mistake in a split, such as masks of 0 and 255 where 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset, parent
from segformer_spark.data.manifest import read_manifest
from segformer_spark.errors import DataError

_MOST_IGNORED = 0.5
_MOST_MASKS = 64


def label_findings(
    pixels: Sequence[Sequence[int]], ignored: Sequence[int], names: Sequence[str], *, whole: bool = True
) -> list[str]:
    """What is conspicuous.

    Args:
        pixels: per class, of every mask.
        ignored: unlabelled pixels of every mask.
        whole: these are all masks of the split, so that a class without a pixel means something.
    """
    totals = np.asarray(pixels, np.int64).reshape(-1, len(names)).sum(0)
    labelled, unlabelled = int(totals.sum()), sum(ignored)
    findings = []
    if unlabelled > _MOST_IGNORED * (labelled + unlabelled):
        share = unlabelled / (labelled + unlabelled)
        findings.append(f"{share:.1%} of all pixels are ignored: they neither train nor count")
    present = [name for name, total in zip(names, totals, strict=True) if total]
    if len(present) == 1 and len(names) > 1:
        findings.append(f"all labelled pixels are of one class, {present[0]}")
    missing = [name for name in names if name not in present]
    if whole and missing and labelled:
        findings.append(f"classes without a single pixel: {', '.join(missing)}")
    return findings


def split_findings(config: DataConfig, split: str, dataset: SegmentationDataset) -> list[str]:
    """The same for a split that is about to be used: from its manifest, or from up to 64 of its masks."""
    names = dataset.classes.names
    with suppress(DataError):  # without a manifest of this split a part of the masks is read
        manifest = read_manifest(config, split)
        whole, indices = parent(dataset)
        if manifest.classes == tuple(names) and len(manifest.images) == len(whole):
            images = [manifest.images[index] for index in indices]
            return label_findings([image["pixels"] for image in images], [image["ignored"] for image in images], names)
    counts = []
    for index in range(0, len(dataset), max(1, len(dataset) // _MOST_MASKS)):
        with suppress(DataError):  # who uses the sample reports it
            counts.append(np.bincount(dataset.load(index).mask.ravel(), minlength=IGNORE_INDEX + 1))
    pixels, ignored = [count[: len(names)].tolist() for count in counts], [int(count[IGNORE_INDEX]) for count in counts]
    return label_findings(pixels, ignored, names, whole=len(counts) == len(dataset))
