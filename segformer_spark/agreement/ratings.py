"""Pairs of images and human ratings of them: files of the user, not of this package.

<pairs>/<base>_init.png, <base>_out.png        (or .jpg) a pair
<ratings>.csv                                  columns base and either share_different (0 to 1), or answer (same or
                                               different) with a row per rater; a column type is optional
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import DataError
from segformer_spark.run.console import logger

_BEFORE, _AFTER = "_init", "_out"
_ANSWERS = {"same": 0.0, "different": 1.0}


@dataclass(frozen=True)
class Item:
    """A pair of images with the share of raters who called them different."""

    base: str
    kind: str
    share_different: float
    before: Path
    after: Path


def read_items(pairs: Path, ratings: Path, *, skip_unpaired: bool = False) -> list[Item]:
    """The rated pairs, in the order of the ratings file. Pairs that nobody rated are counted in the log.

    Args:
        skip_unpaired: leave out what was rated and has no pair; they are named in the log.

    Raises:
        DataError: a file cannot be read, a row is malformed, or pairs are missing.
    """
    shares, kinds = _read_ratings(ratings)
    files = _pictures(pairs)
    missing = {
        base: absent for base in shares if (absent := [base + s for s in (_BEFORE, _AFTER) if base + s not in files])
    }
    if missing:
        first, absent = next(iter(missing.items()))
        what = f"{ratings}: {len(missing)} of {len(shares)} rated pairs have no images in {pairs}"
        listed = ", ".join(missing)
        if not skip_unpaired:
            raise DataError(
                f"{what}, first {first!r} without {' and '.join(absent)}", "Leave them out with --unpaired skip."
            )
        logger.warning("%s and are left out: %s", what, listed)
    bases = {name.removesuffix(_BEFORE) for name in files if name.endswith(_BEFORE)}
    unrated = sorted(base for base in bases if base not in shares and base + _AFTER in files)
    if unrated:
        logger.warning("%s: %d pairs were not rated and are left out, first %s", pairs, len(unrated), unrated[0])
    items = [
        Item(base, kinds[base], share, files[base + _BEFORE], files[base + _AFTER])
        for base, share in shares.items()
        if base not in missing
    ]
    if not items:
        raise DataError(f"{ratings}: none of the rated pairs has images in {pairs}")
    return items


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of pairs (<base>{_BEFORE}.png and <base>{_AFTER}.png)")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    pictures: dict[str, Path] = {}
    for path in (path for path in found if not path.name.startswith(".")):
        if path.stem in pictures:
            raise DataError(f"{pictures[path.stem]} and {path} are both {path.stem}", "Remove one of them.")
        pictures[path.stem] = path
    return pictures


def _read_ratings(path: Path) -> tuple[dict[str, float], dict[str, str]]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            if "base" not in columns or not columns & {"share_different", "answer"}:
                raise DataError(f"{path}:1: the columns base and share_different, or base and answer, are needed")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                base = (row["base"] or "").strip()
                if not base:
                    raise DataError(f"{where}: the column base is empty")
                if "answer" not in columns and base in values:
                    raise DataError(f"{where}: {base!r} is there twice")
                values[base].append(_value(row, where))
                kinds[base] = row.get("type") or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: this is not a CSV file in UTF-8 that can be read: {error}") from error
    if not values:
        raise DataError(f"{path}: there are no rows")
    return {base: sum(own) / len(own) for base, own in values.items()}, kinds


def _value(row: dict[str, str], where: str) -> float:
    if "answer" in row:
        answer = (row["answer"] or "").strip().lower()
        if answer not in _ANSWERS:
            raise DataError(f"{where}: the answer is {row['answer']!r}; expected same or different")
        return _ANSWERS[answer]
    try:
        share = float(row["share_different"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: share_different {row['share_different']!r} is not a number") from error
    if not 0 <= share <= 1:
        raise DataError(f"{where}: share_different {share} is not between 0 and 1")
    return share
