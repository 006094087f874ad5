"""The folder of `evaluate --compare-inference`: counts per image of every row, and what follows from them.

inference.npz         counts (rows, images, classes, 3): intersection, true and predicted pixels
inference.json        rows, halves, winner, and the record
inference.csv, .txt   the rows as tables
SHA256SUMS            digests of all of it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.errors import DataError
from segformer_spark.evaluation.decision import ARGMAX
from segformer_spark.evaluation.halves import Halves
from segformer_spark.evaluation.judged_rows import Comparison, Row, judged, row_record, table
from segformer_spark.files.atomic import atomic_file, csv_text, write_json, write_text
from segformer_spark.files.checksums import CHECKSUMS, write_checksums
from segformer_spark.files.json_file import equal_values, read_json_object
from segformer_spark.files.regular_file import open_regular
from segformer_spark.run.verification import Verification, has_text, verify_sealed

COMPARISON = "inference.json"
_COUNTS, _TABLE, _TEXT = "inference.npz", "inference.csv", "inference.txt"
_COMPUTED = ("half_a", "half_b", "gain", "low", "high", "p_holm")


def write_comparison(
    folder: Path,
    comparison: Comparison,
    class_names: Sequence[str],
    facts: Mapping[str, Any],
    record: Mapping[str, Any],
) -> str:
    """Write everything; returns the digest of SHA256SUMS.

    Args:
        facts: what was compared: `seed` and `time_limit` among them.
        record: how it was made.
    """
    rows, halves = [row_record(row) for row in comparison.rows], comparison.halves
    whole = {
        **facts,
        "class_names": list(class_names),
        "metric": comparison.metric,
        "winner": comparison.winner.name,
        "halves": halves.rule,
        "half_a": halves.chosen_on.tolist(),
        "half_b": halves.judged_on.tolist(),
        "groups": list(halves.groups),
        "rows": rows,
        "record": record,
    }
    with atomic_file(folder / _COUNTS) as stream:
        np.savez_compressed(stream, counts=comparison.per_image)
    write_json(folder / COMPARISON, whole)
    write_text(folder / _TABLE, _csv(rows))
    write_text(folder / _TEXT, "\n".join(table(comparison)) + "\n")
    return write_checksums(folder)


def verify_comparison(folder: Path) -> Verification:
    """Compare all digests, and compute every figure anew from the counts. Changes nothing."""
    found = verify_sealed(folder)
    try:
        _recompute(folder, found)
    except DataError as error:
        found.faults.append(str(error))
    return found


def _recompute(folder: Path, found: Verification) -> None:
    stored = read_json_object(folder / COMPARISON)
    try:
        with open_regular(folder / _COUNTS) as stream, np.load(stream, allow_pickle=False) as archive:
            counts = archive["counts"]
        first, second = (np.array(stored[name], np.int64) for name in ("half_a", "half_b"))
        halves = Halves(first, second, stored["groups"], stored["halves"])
        rows = [
            Row(row["name"], row["tta"], row["inference"], ARGMAX, seconds=row["seconds_per_image"])
            for row in stored["rows"]
        ]
        options = {"seed": stored["seed"], "time_limit": stored["time_limit"]}
        computed = judged(rows, counts, stored["class_names"], halves, **options)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{folder}: {COMPARISON} and {_COUNTS} cannot be read together: {error}") from error
    records = json.loads(json.dumps([row_record(row) for row in computed.rows]))
    for own, row in zip(records, stored["rows"], strict=True):
        for key in _COMPUTED:
            if not equal_values(row.get(key), own[key]):
                found.faults.append(f"{COMPARISON}: {key} of {row['name']} does not follow from {_COUNTS}")
    for name, value in (("winner", computed.winner.name), ("metric", computed.metric)):
        if stored[name] != value:
            found.faults.append(f"{COMPARISON}: {name} is {stored[name]}, {value} follows from {_COUNTS}")
    texts = {_TABLE: _csv(stored["rows"]), _TEXT: "\n".join(table(computed)) + "\n"}
    for name, text in texts.items():
        if not has_text(folder / name, text):
            found.faults.append(f"{name}: does not follow from {COMPARISON}")
    found.recomputed += [f"{COMPARISON}: rows, winner, metric", *texts]
    known = {COMPARISON, CHECKSUMS, *texts}
    others = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in known)
    found.hashed = [f"{COMPARISON}: record, halves, times", *others]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    flat = [
        {key: value for key, value in row.items() if not isinstance(value, dict)}
        | {f"{half}_{name}": value for half in ("half_a", "half_b") for name, value in row[half].items()}
        for row in rows
    ]
    return csv_text(list(dict.fromkeys(key for row in flat for key in row)), flat)
