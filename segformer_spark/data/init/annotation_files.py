"""Annotations as polygons -> shapes by image: COCO JSON, YOLO segmentation text, LabelMe JSON.

COCO: https://cocodataset.org/#format-data, polygons and run-length encodings. YOLO: a text file per image in which a
line is a class number and x y pairs relative to width and height. LabelMe: a JSON file per image with `shapes`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from segformer_spark.config.yaml12 import parse
from segformer_spark.data.decode import Decoding, decode_samples, image_of, open_image
from segformer_spark.data.files import composed, read_file, read_text, visible_files
from segformer_spark.data.init.shapes import AnnotatedImage, Annotations, Points, Shape
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import DataError
from segformer_spark.run.console import logger


class _CocoImage(BaseModel):
    id: int
    file_name: str
    height: int
    width: int


class _CocoCategory(BaseModel):
    id: int
    name: str


class _CocoAnnotation(BaseModel):
    image_id: int
    category_id: int
    segmentation: list[list[float]] | dict[str, Any] | None = None


class _Coco(BaseModel):
    images: list[_CocoImage]
    categories: list[_CocoCategory]
    annotations: list[_CocoAnnotation]


class _LabelMeShape(BaseModel):
    label: str
    points: list[tuple[float, float]]
    shape_type: str = "polygon"
    mask: str | None = None


class _LabelMe(BaseModel):
    shapes: list[_LabelMeShape]
    imageHeight: int | None = None
    imageWidth: int | None = None


def read_annotations(root: Path, given: Path | None, decoding: Decoding) -> Annotations | None:
    """The polygons of a folder; None where there are none.

    Args:
        given: the COCO file, or the folder of annotation files; None looks below `root`.

    Raises:
        DataError: files that are not what they seem to be, or names that lead out of the folder.
    """
    place = given or root
    if place.is_file():
        return _read_coco(place, root)
    files = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    jsons = [path for path in files if path.suffix.lower() == ".json"]
    coco = [path for path in jsons if _is_coco(path)]
    if len(coco) > 1:
        names = ", ".join(str(path.relative_to(place)) for path in coco)
        raise DataError(f"{place}: several COCO files: {names}", "Which one? Give it with --annotations FILE.")
    if coco:
        return _read_coco(coco[0], root)
    images = visible_files(root, IMAGES, "images")
    if jsons:
        return _read_labelme(jsons, images, root, place, decoding)
    texts = [path for path in files if path.suffix.lower() == ".txt" and path.name != "classes.txt"]
    return _read_yolo(texts, images, root, place, decoding) if _match(texts, images, place, root) else None


def _is_coco(path: Path) -> bool:
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: this is not JSON: {error}") from error
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys()


def _parsed(model: Callable[[bytes], Any], path: Path, what: str) -> Any:
    try:
        return model(read_file(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: this is not {what}: {where}: {first['msg']}") from error


def _read_coco(path: Path, root: Path) -> Annotations:
    content: _Coco = _parsed(_Coco.model_validate_json, path, "a COCO file")
    names = {category.id: category.name for category in content.categories}
    shapes: dict[int, list[Shape]] = {image.id: [] for image in content.images}
    left_out = 0
    for one in content.annotations:
        if one.image_id not in shapes or one.category_id not in names:
            raise DataError(
                f"{path}: an annotation names image {one.image_id} and category {one.category_id}, not both "
                "of which are in the file"
            )
        if not one.segmentation:
            left_out += 1
        elif isinstance(one.segmentation, dict):
            shapes[one.image_id].append(Shape(names[one.category_id], rle=one.segmentation))
        else:
            polygons = [np.asarray(part).reshape(-1, 2) for part in one.segmentation if len(part) >= 6]
            shapes[one.image_id].append(Shape(names[one.category_id], polygons))
    if left_out:
        logger.warning(
            "%s: %d of %d annotations have no outline and are left out", path, left_out, len(content.annotations)
        )
    found = [
        AnnotatedImage(_inside(image.file_name, path, root), (image.height, image.width), shapes[image.id])
        for image in sorted(content.images, key=lambda image: image.file_name)
    ]
    used = {shape.category for own in shapes.values() for shape in own}
    categories = [names[identity] for identity in sorted(names) if names[identity] in used]
    known = {one.image for one in found}
    return Annotations("COCO", categories, found, [i for i in visible_files(root, IMAGES, "images") if i not in known])


def _inside(name: str, path: Path, root: Path) -> Path:
    """The file below `root` that a COCO file names; where it lies in another folder, the one file of that name."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path}: the file name {name!r} leads out of its folder")
    found = [root / name] if (root / name).is_file() else sorted(root.rglob(PurePosixPath(name).name))
    if len(found) != 1:
        raise DataError(
            f"{path}: {name}: {'several files have' if found else 'there is no file of'} this name in {root}"
        )
    return found[0]


def _read_labelme(
    files: Sequence[Path], images: Sequence[Path], root: Path, place: Path, decoding: Decoding
) -> Annotations:
    matched = _match(files, images, place, root)
    found, others = [], 0
    for image, file in matched.items():
        content: _LabelMe = _parsed(_LabelMe.model_validate_json, file, "a LabelMe file")
        size = (content.imageHeight, content.imageWidth)
        own = (size[0], size[1]) if size[0] and size[1] else open_image(image, decoding).header.size
        shapes = [shape for one in content.shapes if (shape := _labelme_shape(one, file)) is not None]
        others += len(content.shapes) - len(shapes)
        found.append(AnnotatedImage(image, own, shapes))
    if others:
        logger.warning("%s: %d shapes are points or lines, which have no area, and are left out", place, others)
    categories = sorted({shape.category for one in found for shape in one.shapes})
    return Annotations("LabelMe", categories, found, [image for image in images if image not in matched])


def _labelme_shape(one: _LabelMeShape, file: Path) -> Shape | None:
    points = np.asarray(one.points, np.float64).reshape(-1, 2)
    if one.shape_type == "polygon" and len(points) >= 3:
        return Shape(one.label, [points])
    if one.shape_type == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return Shape(one.label, [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])])
    if one.shape_type == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius = float(np.linalg.norm(points[1] - points[0]))
        return Shape(one.label, [points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)])
    if one.shape_type == "mask" and one.mask and len(points) == 2:
        picture = image_of(base64.b64decode(one.mask), file)
        left, top = (int(value) for value in points[0])
        return Shape(one.label, patch=(decode_samples(picture).values > 0, (left, top)))
    return None


def _read_yolo(
    files: Sequence[Path], images: Sequence[Path], root: Path, place: Path, decoding: Decoding
) -> Annotations:
    matched = _match(files, images, place, root)
    names = _yolo_names(root, place)
    found, highest = [], -1
    for image in images:
        size = open_image(image, decoding).header.size
        rows = _yolo_rows(matched[image]) if image in matched else []
        highest = max([highest, *(number for number, _ in rows)])
        shapes = [
            Shape(names[number] if number < len(names) else f"class_{number}", [points * (size[1], size[0])])
            for number, points in rows
        ]
        found.append(AnnotatedImage(image, size, shapes))
    if names and highest >= len(names):
        raise DataError(f"{place}: there is a class number {highest}, and names for {len(names)}: {', '.join(names)}")
    if len(matched) < len(images):
        logger.warning(
            "%s: %d of %d images have no text file, which in YOLO's format means that they show nothing",
            root,
            len(images) - len(matched),
            len(images),
        )
    return Annotations("YOLO", names or [f"class_{number}" for number in range(highest + 1)], found)


def _yolo_rows(file: Path) -> list[tuple[int, Points]]:
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            category, values = int(parts[0]), np.asarray([float(part) for part in parts[1:]])
        except ValueError as error:
            raise DataError(f"{file}:{number}: expected a class number and x y pairs, got {line[:60]!r}") from error
        if len(values) == 4:
            raise DataError(
                f"{file}:{number}: this line is a box, not a polygon",
                "Is this a data set for detection? Segmentation needs outlines: class x y x y x y ...",
            )
        if len(values) < 6 or len(values) % 2 or category < 0 or not bool(((values >= 0) & (values <= 1)).all()):
            raise DataError(
                f"{file}:{number}: expected a class number and three or more x y pairs from 0 to 1, got {line[:60]!r}"
            )
        rows.append((category, values.reshape(-1, 2)))
    return rows


def _yolo_names(root: Path, place: Path) -> list[str]:
    for folder in dict.fromkeys((place, root, place.parent, root.parent)):
        for name in ("data.yaml", "dataset.yaml", "classes.txt", "obj.names"):
            path = folder / name
            if path.is_file():
                return _names_in(path)
    return []


def _names_in(path: Path) -> list[str]:
    if path.suffix != ".yaml":
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    content, _ = parse(read_text(path), str(path))
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        return [str(names[key]) for key in sorted(names)]
    if not isinstance(names, list):
        raise DataError(f"{path}: there are no class names in it (names: [...])")
    return [str(name) for name in names]


def _match(files: Sequence[Path], images: Sequence[Path], place: Path, root: Path) -> dict[Path, Path]:
    """{image: its annotation file}: of the same name, in the same folder, or in labels/ beside images/."""
    by_key: dict[str, Path] = {}
    for file in files:
        by_key.setdefault(_key(file, place), file)
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(composed(file.stem), []).append(file)
    found = {}
    for image in images:
        own = by_key.get(_key(image, root))
        same = by_stem.get(composed(image.stem), [])
        if own is not None or len(same) == 1:
            found[image] = own or same[0]
    return found


def _key(path: Path, root: Path) -> str:
    parts = [part for part in path.relative_to(root).with_suffix("").parts if part not in ("images", "labels")]
    return composed("/".join(parts))
