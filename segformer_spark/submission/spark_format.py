"""The SPARK submission: one npz per test image in one flat zip (SPARK 2024 Utils README).

`test_00000_img.jpg` -> `test_00000_layer.npz` with one array "data", bool (H, W, 3): channel 0 body, channel 1 all
False, channel 2 solar panels; the classes exclude each other.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Mask
from segformer_spark.data.decode import AS_STORED, Decoding, open_image
from segformer_spark.data.files import visible_files
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import DataError, UserError
from segformer_spark.files.atomic import atomic_file
from segformer_spark.files.regular_file import open_regular

BODY, PANELS = 1, 2
_KEY = "data"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def list_images(folder: Path) -> list[Path]:
    """The test images, by name; files in sub-folders and of other kinds are named in the log, dot files skipped.

    Raises:
        DataError: no folder, no images, or a name that has no submission name.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: there is no such folder; for SPARK it is the one with test_00000_img.jpg")
    images = visible_files(folder, IMAGES, "images", below=False)
    names: dict[str, Path] = {}
    for image in images:
        name = submission_name(image)
        if name in names:
            raise DataError(f"{image} and {names[name]} would both become {name}")
        names[name] = image
    return images


def submission_name(image: Path) -> str:
    """`test_00000_img.jpg` -> `test_00000_layer.npz`."""
    if not image.stem.endswith("_img"):
        raise DataError(f"{image}: test images are named NAME_img.jpg, as in test_00000_img.jpg")
    return f"{image.stem.removesuffix('_img')}_layer.npz"


def encode(ids: Mask) -> NDArray[np.bool_]:
    """Class ids (H, W) -> bool (H, W, 3)."""
    return np.stack([ids == BODY, np.zeros(ids.shape, np.bool_), ids == PANELS], axis=-1)


def write_prediction(path: Path, ids: Mask, tag: str = "") -> None:
    """Write one npz, atomically and with the same bytes for the same ids and tag.

    Args:
        tag: what it was made of, in the comment of the npz, which is a zip; readers of arrays do not see it.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{_KEY: encode(ids)})
    if tag:
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.comment = tag.encode("ascii")
    with atomic_file(path) as stream:
        stream.write(buffer.getvalue())


def read_prediction(path: Path) -> Mask:
    """Class ids (H, W) of a valid npz."""
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
        data = archive[_KEY]
    return np.asarray(BODY * data[..., 0].astype(np.uint8) + PANELS * data[..., 2].astype(np.uint8), np.uint8)


def prediction_size(image: Path, decoding: Decoding) -> tuple[int, int]:
    """(height, width) that the prediction of an image has, from the file's header."""
    return decoding.shown_size(open_image(image, decoding).header)


def check_prediction(
    source: Path | io.BytesIO, size: tuple[int, int] | None, name: str | None = None, tag: str | None = None
) -> str | None:
    """What is wrong with one npz, or None.

    Args:
        size: (height, width) of its image; None for any.
        name: for messages; None is that of the path.
        tag: that it was written with; None for any.
    """
    name = name or Path(str(source)).name
    try:
        with np.load(source, allow_pickle=False) as archive:
            if archive.files != [_KEY]:
                return f"{name}: holds {archive.files}, expected one array {_KEY!r}"
            data = archive[_KEY]
            if not isinstance(data, np.ndarray):
                return f"{name}: {_KEY!r} is no array"
            found = archive.zip.comment.decode("ascii", "replace")
    except (OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError) as error:
        return f"{name}: cannot be read: {error}"
    except (zipfile.BadZipFile, zlib.error, AttributeError, RuntimeError, struct.error) as error:
        return f"{name}: cannot be read: {error}"
    if tag is not None and found != tag:
        return f"{name}: is of another image, model or setting (its comment says: {found or 'nothing'})"
    if data.dtype != np.bool_:
        return f"{name}: dtype {data.dtype}, expected bool"
    shape = (*size, 3) if size is not None else (*data.shape[:2], 3)
    if data.shape != shape or data.ndim != 3:
        return f"{name}: shape {data.shape}, expected {shape}"
    if data[..., 1].any():
        return f"{name}: channel 1 is not empty"
    if (data[..., 0] & data[..., 2]).any():
        return f"{name}: pixels are body and panels at once"
    return None


def validate_folder(
    folder: Path, images: Sequence[Path], decoding: Decoding = AS_STORED, tags: Mapping[str, str] | None = None
) -> None:
    """Check every prediction against its image, and that none is missing or extra.

    Args:
        tags: by file name, that they were written with; None for any.

    Raises:
        UserError: with the first few faults.
    """
    expected = {submission_name(image): image for image in images}
    present = {path.name for path in folder.glob("*.npz") if not path.name.startswith(".")}
    faults = [f"{name}: missing" for name in sorted(expected.keys() - present)]
    faults += [f"{name}: no such test image" for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        tag = None if tags is None else tags[name]
        fault = check_prediction(folder / name, prediction_size(expected[name], decoding), tag=tag)
        if fault is not None:
            faults.append(fault)
    if faults:
        shown = "\n  ".join(faults[:10])
        raise UserError(f"{folder}: {len(faults)} of {len(expected)} predictions are not valid:\n  {shown}")


def write_zip(folder: Path, images: Sequence[Path], target: Path) -> None:
    """A flat zip, sorted, with fixed times and modes: the same predictions give the same bytes."""
    with atomic_file(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(submission_name(image) for image in images):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            # The npz files are compressed already.
            archive.writestr(info, (folder / name).read_bytes())
