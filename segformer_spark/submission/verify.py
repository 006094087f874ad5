"""A submission's folder: the zip, every prediction, and that they are of the manifest's images and model."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

from segformer_spark.errors import DataError
from segformer_spark.files.checksums import CHECKSUMS
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.regular_file import open_regular
from segformer_spark.run.verification import Verification, verify_sealed
from segformer_spark.submission.spark_format import check_prediction

MANIFEST, SETTINGS = "manifest.json", "settings.json"


def verify_submission(folder: Path) -> Verification:
    """Check what `submit` wrote, without the images."""
    if not (folder / CHECKSUMS).is_file():
        return Verification([f"{CHECKSUMS}: missing; submissions of before version 0.3 have none"])
    found = verify_sealed(folder)
    if found.faults:
        return found
    try:
        manifest, settings = read_json_object(folder / MANIFEST), read_json_object(folder / SETTINGS)
        archive, digest, files = folder / str(manifest["zip"]), str(manifest["zip_sha256"]), manifest.get("files")
    except (DataError, KeyError) as error:
        found.faults.append(f"{MANIFEST}: cannot be read: {error}")
        return found
    for key, value in settings.items():
        if manifest.get(key) != value:
            found.faults.append(f"{MANIFEST}: {key} is {manifest.get(key)}, {SETTINGS} says {value}")
    if not isinstance(files, dict):
        found.faults.append(f"{MANIFEST}: lists no files")
        files = {}
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    present = {path.name for path in folder.glob("*.npz")}
    found.faults += [f"{name}: missing" for name in sorted(files.keys() - present)]
    found.faults += [f"{name}: not in {MANIFEST}" for name in sorted(present - files.keys()) if files]
    for name in sorted(present & files.keys()):
        if sha256_of(folder / name) != files[name]:
            found.faults.append(f"{name}: changed")
            continue
        fault = check_prediction(folder / name, None)
        comment = _comment(folder / name) if fault is None else ""
        if fault is not None:
            found.faults.append(fault)
        elif not comment.endswith(f"settings sha256 {whole}"):
            found.faults.append(f"{name}: is of another model or setting than {SETTINGS}")
    found.faults += _archive_faults(archive, digest, files)
    found.hashed = [archive.name, f"{len(files)} npz files"]
    return found


def _comment(path: Path) -> str:
    with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        return archive.comment.decode("ascii", "replace")


def _archive_faults(path: Path, digest: str, files: dict[str, str]) -> list[str]:
    """What is wrong with the zip: changed, or not of these files."""
    try:
        if sha256_of(path) != digest:
            return [f"{path.name}: changed"]
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            inside = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, io.UnsupportedOperation, NotImplementedError, RuntimeError) as error:
        return [f"{path.name}: cannot be read: {error}"]
    others = [name for name in inside if files and inside[name] != files.get(name)]
    return [f"{path.name}: {name} is not the file in the folder" for name in others]
