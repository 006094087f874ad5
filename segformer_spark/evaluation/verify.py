"""`verify`: whether an evaluation is what was written: digests of all files, and every metric computed anew."""

from __future__ import annotations

import hashlib
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
    RESULTS,
    read_counted,
    tables,
)
from segformer_spark.metrics.detailed import detailed_report
from segformer_spark.run.atomic import csv_text
from segformer_spark.run.checksums import CHECKSUMS, check_checksums, root_digest
from segformer_spark.run.json_file import equal_values, read_json_object
from segformer_spark.run.verification import Verification


def verify_evaluation(folder: Path) -> Verification:
    """Check a folder that `evaluate` wrote. Needs no model, data set or GPU, and changes nothing.

    Raises:
        UserError: this is no evaluation.
    """
    if not (folder / CHECKSUMS).exists() and not (folder / RESULTS).exists():
        raise UserError(f"{folder}: this is no evaluation: neither {CHECKSUMS} nor {RESULTS} lies there")
    found = Verification(check_checksums(folder, OUTSIDE))
    if (folder / CHECKSUMS).is_file():
        found.digest = root_digest(folder)
    _check_report(folder, found)
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
        try:
            same = (folder / name).read_text(encoding="utf-8") == csv_text(columns, rows)
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            found.faults.append(f"{name}: does not follow from {COUNTS}")
        found.recomputed.append(name)
    known = {COUNTS, IMAGES, RESULTS, *own, CHECKSUMS, *OUTSIDE}
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    found.hashed = [COUNTS, IMAGES, f"{RESULTS}: record", *(name for name in names if name not in known)]


def _difference(metrics: dict[str, Any], stored: dict[str, Any], key: str) -> str:
    one, other = metrics.get(key), stored.get(key)
    return f": {other} in the file, {one} computed" if isinstance(one, float | int | None) else ""


def _check_report(folder: Path, found: Verification) -> None:
    report, own = folder / REPORT, folder / REPORT_DIGEST
    if not report.exists() and not own.exists():
        return
    try:
        line = own.read_text(encoding="ascii")
        digest = hashlib.sha256(report.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        found.faults.append(f"{REPORT}: cannot be checked: {error}")
        return
    if line != f"{digest}  {REPORT}\n":
        found.faults.append(f"{REPORT}: changed")
    elif found.digest is not None and found.digest not in report.read_text(encoding="utf-8"):
        found.faults.append(f"{REPORT}: shows another digest than that of {CHECKSUMS}")
