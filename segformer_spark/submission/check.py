"""`submit --check`: whether any zip, also one made elsewhere, is a valid submission; every fault is named."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segformer_spark.data.decode import AS_STORED, Decoding
from segformer_spark.errors import DataError
from segformer_spark.files.regular_file import open_regular
from segformer_spark.submission.spark_format import check_prediction, prediction_size, submission_name

_ENCRYPTED = 0x1
_MOST_BYTES = 2**31


def check_archive(path: Path, images: Sequence[Path] | None, decoding: Decoding = AS_STORED) -> list[str]:
    """What is wrong with a zip; empty for a valid one.

    Args:
        images: the test images; None checks names and arrays alone.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(f"--check {path}: there is no such file")
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            return _faults(archive, images, decoding)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        return [f"{path.name}: this is no zip archive: {error}"]


def _faults(archive: zipfile.ZipFile, images: Sequence[Path] | None, decoding: Decoding) -> list[str]:
    faults: list[str] = []
    expected = None if images is None else {submission_name(image): image for image in images}
    members = [info for info in archive.infolist() if not info.is_dir()]
    folders = [info.filename for info in archive.infolist() if info.is_dir()]
    faults += [f"{name}: the zip has to be flat, this is a folder" for name in folders]
    faults += [f"{name}: is in the zip {n} times" for name, n in Counter(i.filename for i in members).items() if n > 1]
    for info in members:
        fault = _fault(archive, info, expected, decoding)
        if fault is not None:
            faults.append(fault)
    if expected is not None:
        present = {info.filename for info in members}
        faults += [f"{name}: missing" for name in sorted(expected.keys() - present)]
    elif not members:
        faults.append("the zip is empty")
    return faults


def _fault(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, expected: dict[str, Path] | None, decoding: Decoding
) -> str | None:
    name = info.filename
    if "/" in name or "\\" in name:
        return f"{name}: lies in a folder of the zip, which has to be flat"
    if info.flag_bits & _ENCRYPTED:
        return f"{name}: is encrypted"
    if not name.endswith("_layer.npz") or (expected is not None and name not in expected):
        return f"{name}: no such test image" if expected is not None else f"{name}: files are named NAME_layer.npz"
    if info.file_size > _MOST_BYTES:
        return f"{name}: would be {info.file_size} bytes large"
    try:
        content = archive.read(info)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        return f"{name}: cannot be read: {error}"
    size = None if expected is None else prediction_size(expected[name], decoding)
    return check_prediction(io.BytesIO(content), size, name)
