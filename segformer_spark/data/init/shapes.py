"""Annotated areas of images, and how they become masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Mask
from segformer_spark.errors import DataError

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """An annotated area: polygons, a run-length encoding, or pixels at a place.

    Attributes:
        category: name of its class.
        polygons: outlines in pixels of the image, (N, 2) each, x first; their union is the area.
        rle: as COCO has it, {"size": [height, width], "counts": ...}.
        patch: bool pixels, and the (left, top) where they lie.
    """

    category: str
    polygons: Sequence[Points] = ()
    rle: Mapping[str, Any] | None = None
    patch: tuple[NDArray[np.bool_], tuple[int, int]] | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image, the (height, width) that its annotations are for, and its shapes."""

    image: Path
    size: tuple[int, int]
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class Annotations:
    """All images of a folder.

    Attributes:
        format: for messages.
        categories: names of the classes, without the background.
        without: images that no annotation file speaks of.
    """

    format: str
    categories: Sequence[str]
    images: Sequence[AnnotatedImage]
    without: Sequence[Path] = ()


def draw(annotated: AnnotatedImage, categories: Sequence[str]) -> Mask:
    """Class ids (H, W): 0 is the background, categories follow from 1; smaller areas lie over larger ones.

    Areas are those of the COCO API.

    Raises:
        DataError: a run-length encoding that is damaged, or of another size.
    """
    height, width = annotated.size
    ids = np.zeros((height, width), np.uint8)
    areas = [(shape.category, _area(shape, annotated)) for shape in annotated.shapes]
    for category, area in sorted(areas, key=lambda one: -int(one[1].sum())):
        ids[area] = categories.index(category) + 1
    return ids


def _area(shape: Shape, annotated: AnnotatedImage) -> NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    height, width = annotated.size
    if shape.patch is not None:
        pixels, (left, top) = shape.patch
        whole = np.zeros((height, width), np.bool_)
        part = pixels[max(0, -top) : height - top, max(0, -left) : width - left]
        whole[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
        return whole
    try:
        if shape.rle is not None:
            if [int(side) for side in shape.rle["size"]] != [height, width]:
                raise DataError(
                    f"{annotated.image}: an encoding of {shape.rle['size']}, the image is {[height, width]}"
                )
            rle = shape.rle
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(dict(rle), height, width)
            area = coco_mask.decode(rle)
        else:
            encoded = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in shape.polygons], height, width)
            area = coco_mask.decode(coco_mask.merge(encoded))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{annotated.image}: an annotation cannot be drawn: {error}") from error
    return np.asarray(area, np.bool_)
