"""`evaluate --predictions`: masks that another program made, scored like a model's.

Found by the names of the images: class ids in a PNG, a PNG in the classes' colours, or SPARK's npz, in a folder or zip.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError

from segformer_spark.data.dataset import ClassInfo, Mask, SegmentationDataset
from segformer_spark.errors import DataError

BODY_CHANNEL, PANELS_CHANNEL = 0, 2
_MOST_BYTES = 2**31
_SUFFIXES = (".png", ".npz")


@dataclass(frozen=True)
class PredictionFiles:
    """Where the predictions lie: {name of the image: member}, below a folder or in a zip."""

    root: Path
    members: dict[str, str]
    archive: zipfile.ZipFile | None

    def read(self, member: str) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: it is damaged, encrypted or too large.
        """
        try:
            if self.archive is None:
                return (self.root / member).read_bytes()
            info = self.archive.getinfo(member)
            if info.file_size > _MOST_BYTES:
                raise DataError(f"{self.root}: {member} would be {info.file_size} bytes large")
            return self.archive.read(member)
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.root}: {member}: cannot be read: {error}") from error


@contextmanager
def open_predictions(path: Path, dataset: SegmentationDataset) -> Iterator[PredictionFiles]:
    """The predictions of a data set's images.

    Raises:
        DataError: there is no such folder or zip, none of its files belongs to an image, or an image has none or two.
    """
    archive = None
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: this is no zip archive: {error}") from error
    elif not path.is_dir():
        raise DataError(f"--predictions {path}: there is no such folder or zip")
    try:
        listed = archive.namelist() if archive is not None else _below(path)
        yield PredictionFiles(path, _matched(path, listed, dataset), archive)
    finally:
        if archive is not None:
            archive.close()


def _below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _matched(path: Path, listed: list[str], dataset: SegmentationDataset) -> dict[str, str]:
    by_key: dict[str, list[str]] = {}
    for member in listed:
        pure = PurePosixPath(member)
        if pure.suffix.lower() in _SUFFIXES and not pure.name.startswith("."):
            for key in _member_keys(pure.with_suffix("")):
                by_key.setdefault(key, []).append(member)
    names = [dataset.sample_id(index) for index in range(len(dataset))]
    found: dict[str, str] = {}
    missing, twice = [], []
    stems = Counter(dataset.files(index)[0].stem for index in range(len(dataset)))
    for index, name in enumerate(names):
        category = dataset.categories[dataset.category(index)] if dataset.categories else None
        image = dataset.files(index)[0]
        keys = _image_keys(name, image, category, alone=stems[image.stem] == 1)
        members = next((by_key[key] for key in keys if key in by_key), [])
        if len(members) > 1:
            twice.append(f"{name}: {', '.join(sorted(members)[:2])}")
        elif members:
            found[name] = members[0]
        else:
            missing.append(name)
    shared = [member for member, number in Counter(found.values()).items() if number > 1]
    if shared:
        own = [name for name, member in found.items() if member == shared[0]]
        raise DataError(
            f"{path}: {shared[0]} would be the prediction of {len(own)} images, such as {own[0]} and {own[1]}",
            "Put predictions into folders named as those of the images.",
        )
    if not found:
        raise DataError(
            f"{path}: none of its {len(listed)} files has the name of an image, such as {names[0]}.png",
            "Predictions are PNG or npz files named as the images.",
        )
    if missing or twice:
        faults = [f"{len(missing)} images have no prediction, first {missing[0]}"] if missing else []
        faults += [f"{len(twice)} have several, first {twice[0]}"] if twice else []
        raise DataError(f"{path}: {'; '.join(faults)}")
    return found


def _member_keys(pure: PurePosixPath) -> set[str]:
    """Names that a file of predictions may be found by: its path, its folder and name, its name; without _layer."""
    keys = {str(pure), "/".join(pure.parts[-2:]), pure.name}
    return keys | {key.removesuffix("_layer") for key in keys}


def _image_keys(sample_id: str, image: Path, category: str | None, *, alone: bool) -> list[str]:
    """Names that an image's prediction has, the most precise first; its own name where no other image has it."""
    inside = [f"{folder}/{image.stem}" for folder in (category, image.parent.name) if folder is not None]
    keys = [sample_id, *inside, *([image.stem] if alone else [])]
    return [short for key in keys for short in (key, key.removesuffix("_img"))]


def decode_prediction(content: bytes, name: str, classes: ClassInfo, size: tuple[int, int]) -> Mask:
    """Class ids (H, W) of one file.

    Raises:
        DataError: it holds something else, ids that are no class, or is of another size.
    """
    ids = _spark_ids(content, name) if name.lower().endswith(".npz") else _png_ids(content, name, classes)
    if ids.shape != size:
        raise DataError(f"{name}: {ids.shape[0]} x {ids.shape[1]} pixels, its image has {size[0]} x {size[1]}")
    highest = int(ids.max(initial=0))
    if highest >= len(classes.names):
        raise DataError(f"{name}: holds the id {highest}, which is no class: there are {len(classes.names)}")
    return ids.astype(np.uint8)


def _spark_ids(content: bytes, name: str) -> Mask:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if archive.files != ["data"]:
                raise DataError(f"{name}: holds {archive.files}, expected one array 'data'")
            data = archive["data"]
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    if data.dtype != np.bool_ or data.ndim != 3 or data.shape[2] != 3:
        raise DataError(f"{name}: {data.dtype} {data.shape}, expected bool (height, width, 3)")
    if data[..., 1].any() or (data[..., BODY_CHANNEL] & data[..., PANELS_CHANNEL]).any():
        raise DataError(f"{name}: channel 1 is not empty, or pixels are body and panels at once")
    return np.asarray(data[..., BODY_CHANNEL] + 2 * data[..., PANELS_CHANNEL].astype(np.uint8), np.uint8)


def _png_ids(content: bytes, name: str, classes: ClassInfo) -> Mask:
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            if image.mode in ("L", "P", "I;16", "I", "1"):
                return np.asarray(image.convert("L") if image.mode == "1" else image)
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    colors = np.array([(r << 16) + (g << 8) + b for r, g, b in classes.colors], np.uint32)
    order = np.argsort(colors)
    place = order[np.minimum(np.searchsorted(colors[order], packed), len(colors) - 1)]
    wrong = colors[place] != packed
    if wrong.any():
        color = tuple(int(value) for value in pixels[wrong][0])
        raise DataError(f"{name}: {int(wrong.sum())} pixels have the colour of no class, such as {color}")
    return place.astype(np.uint8)
