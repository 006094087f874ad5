"""What `predict` was given: files, folders and patterns -> images with names for their results."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.data.files import composed, visible_files
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import DataError, UserError
from segformer_spark.files.paths import real_path

_PATTERN = "*?["


@dataclass(frozen=True)
class InputImage:
    """An image, and the name of its results: the path below what was given, without suffix."""

    path: Path
    name: str


def find_images(given: Sequence[Path], output: Path) -> list[InputImage]:
    """All images, in the order of their names.

    Args:
        given: files, folders (with what lies below them) and patterns such as 'photos/*.jpg'.
        output: where results will be written.

    Raises:
        UserError: nothing there, results in the folder of the images, or two images with one name for their results.
    """
    found: dict[Path, InputImage] = {}
    for path in given:
        for image in _expanded(path):
            found.setdefault(real_path(image.path), image)
        _refuse_overlap(path, output)
    images = sorted(found.values(), key=lambda image: image.name)
    for one, other in itertools.pairwise(images):
        if one.name == other.name:
            raise UserError(
                f"{one.path} and {other.path} would both become {one.name}.png",
                "Rename one of them, or predict them into folders of their own.",
            )
    return images


def _expanded(path: Path) -> Iterator[InputImage]:
    if path.is_dir():
        for image in visible_files(path, IMAGES, "images"):
            yield InputImage(image, _name(image.relative_to(path)))
    elif path.is_file():
        yield _file(path)
    elif any(character in str(path) for character in _PATTERN):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGES]
        if not files:
            raise DataError(f"{path}: no image has a name of this pattern")
        yield from (_file(file) for file in files)
    else:
        raise DataError(f"{path}: there is no such file or folder of images")


def _file(path: Path) -> InputImage:
    if path.suffix.lower() not in IMAGES:
        raise DataError(f"{path}: this is no image of a known kind ({', '.join(IMAGES)})")
    return InputImage(path, _name(Path(path.name)))


def _name(path: Path) -> str:
    return composed(str(path.with_suffix("")))


def _refuse_overlap(given: Path, output: Path) -> None:
    """Results among the images would be the next call's images."""
    folder, target = real_path(given), real_path(output)
    if given.is_dir() and (target == folder or folder in target.parents):
        raise UserError(
            f"--output {output} lies in the folder of images {given}",
            "Give a folder beside it, so that they do not mix.",
        )
    if target == folder or target in folder.parents:
        raise UserError(f"{given} lies in the folder of results, {output}", "Give another --output.")
