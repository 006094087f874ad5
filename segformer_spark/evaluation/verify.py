"""`verify`: whether an evaluation is what was written: digests of all files, and every metric computed anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segformer_spark.errors import DataError, UserError
from segformer_spark.evaluation.result_folder import (
    COUNTS,
    IMAGES,
    OUTSIDE,
    REPORT,
    REPORT_DIGEST,
    REPORT_TEXT,
    RESULTS,
    read_counted,
    tables,
)
from segformer_spark.files.atomic import csv_text
from segformer_spark.files.checksums import CHECKSUMS
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import equal_values, read_json_object
from segformer_spark.files.regular_file import read_regular
from segformer_spark.metrics.detailed import detailed_report
from segformer_spark.run.verification import Verification, has_text, verify_sealed


def verify_evaluation(folder: Path) -> Verification:
    """Check a folder that `evaluate` wrote. Needs no model, data set or GPU, and changes nothing.

    Raises:
        UserError: this is no evaluation.
    """
    if not (folder / CHECKSUMS).exists() and not (folder / RESULTS).exists():
        raise UserError(f"{folder}: this is no evaluation: neither {CHECKSUMS} nor {RESULTS} lies there")
    found = verify_sealed(folder, OUTSIDE)
    found.faults += check_report(folder, found.digest).faults
    try:
        _recompute(folder, found)
    except DataError as error:
        found.faults.append(str(error))
    return found


def _recompute(folder: Path, found: Verification) -> None:
    counts, of = read_counted(folder)
    metrics: dict[str, Any] = json.loads(json.dumps(detailed_report(counts, of)))
    stored = read_json_object(folder / RESULTS)
    stored.pop("record", None)
    for key in sorted(metrics.keys() | stored.keys()):
        if key not in stored or key not in metrics or not equal_values(stored[key], metrics[key]):
            found.faults.append(f"{RESULTS}: {key} does not follow from {COUNTS}{_difference(metrics, stored, key)}")
    found.recomputed.append(f"{RESULTS}: {', '.join(sorted(metrics))}")
    own = tables(counts, of, metrics)
    for name, (columns, rows) in own.items():
        if not has_text(folder / name, csv_text(columns, rows)):
            found.faults.append(f"{name}: does not follow from {COUNTS}")
        found.recomputed.append(name)
    known = {COUNTS, IMAGES, RESULTS, *own, CHECKSUMS, *OUTSIDE}
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    found.hashed = [COUNTS, IMAGES, f"{RESULTS}: record", *(name for name in names if name not in known)]


def _difference(metrics: dict[str, Any], stored: dict[str, Any], key: str) -> str:
    one, other = metrics.get(key), stored.get(key)
    return f": {other} in the file, {one} computed" if isinstance(one, float | int | None) else ""


def check_report(folder: Path, digest: str | None = None) -> Verification:
    """Compare report.html and report.md, if there are any, with the digests beside them.

    Args:
        digest: of the evaluation's SHA256SUMS, which the report shows.
    """
    found = Verification()
    own = folder / REPORT_DIGEST
    present = [name for name in (REPORT, REPORT_TEXT) if (folder / name).exists()]
    if not present and not own.exists():
        return found
    try:
        *written, rest = read_regular(own).decode("ascii").split("\n")
        lines = {name: sha256 for sha256, name in (line.split("  ", 1) for line in written)}
        if rest:
            found.faults.append(f"{REPORT_DIGEST}: is cut off")
        for name in sorted({REPORT, *present, *lines}):
            if lines.get(name) is None or sha256_of(folder / name) != lines[name]:
                found.faults.append(f"{name}: changed")
        if not found.faults and digest is not None and digest.encode() not in read_regular(folder / REPORT):
            found.faults.append(f"{REPORT}: shows another digest than that of {CHECKSUMS}")
    except (OSError, ValueError) as error:
        found.faults.append(f"{REPORT}: cannot be checked: {error}")
    found.hashed = [REPORT, REPORT_TEXT]
    return found
