"""A data set: every file against its manifest."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.config.data_schema import DataConfig
from segformer_spark.data.manifest import read_manifest
from segformer_spark.errors import DataError
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import progress
from segformer_spark.run.verification import Verification


def verify_data(root: Path) -> Verification:
    """All splits of manifest.json in a data set's folder. Reads every file."""
    found = Verification()
    try:
        raw = read_json_object(root / "manifest.json")
        splits, dataset = list(raw["splits"]), str(raw["dataset"])
    except (DataError, KeyError, TypeError) as error:
        found.faults.append(f"manifest.json: cannot be read: {error}")
        return found
    config = DataConfig(dataset=dataset, root=str(root))
    for split in splits:
        try:
            manifest = read_manifest(config, split)
            expected = {image[k]: str(image[f"{k}_sha256"]) for image in manifest.images for k in ("image", "mask")}
        except (DataError, KeyError, TypeError) as error:
            found.faults.append(f"{split}: {error}")
            continue
        for name, digest in progress(expected.items(), total=len(expected), label=f"verifying {split}"):
            try:
                if sha256_of(root / name) != digest:
                    found.faults.append(f"{name}: changed")
            except OSError as error:
                found.faults.append(f"{name}: {error.strerror}")
        found.hashed.append(f"{split}/ ({len(expected)} files)")
    return found
