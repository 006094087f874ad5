"""metrics.jsonl, and what is derived from it: history.csv."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from segformer_spark.files.atomic import ask_guard, write_csv, write_error, write_text
from segformer_spark.files.regular_file import append_regular, named, read_regular
from segformer_spark.run.console import logger

Row = dict[str, Any]


class MetricsLog:
    """Appends rows with "kind" ("train" or "validation") and "step" to a JSON-lines file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Row) -> None:
        """Add one row; a value that is not finite becomes null."""
        clean = {key: _finite(value) for key, value in row.items()}
        ask_guard(self.path)
        try:
            with append_regular(self.path) as stream:
                stream.write((json.dumps(clean, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise write_error(self.path, error) from error

    def rows(self) -> list[Row]:
        """All complete rows. Other lines are left out and counted in the log, save the last: a kill may cut it off."""
        with named(self.path):
            try:
                lines = read_regular(self.path).decode("utf-8", errors="replace").split("\n")
            except FileNotFoundError:
                return []
        rows = {number: row for number, line in enumerate(lines, start=1) if (row := _row(line)) is not None}
        foreign = [number for number, line in enumerate(lines[:-1], start=1) if line and number not in rows]
        if foreign:
            logger.warning(
                "%s: %d lines are no rows of this log and are left out, first line %d",
                self.path,
                len(foreign),
                foreign[0],
            )
        return list(rows.values())

    def rewind(self, step: int, *, validated: bool) -> None:
        """Forget what was logged after `step`: a resumed run does it again.

        Args:
            validated: whether the validation at `step` itself is done with.
        """
        last_validation = step if validated else step - 1
        kept = [row for row in self.rows() if row["step"] <= (step if row["kind"] == "train" else last_validation)]
        if self.path.is_file():
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))


def write_history(rows: list[Row], path: Path) -> None:
    """One CSV row per validation: its metrics, and the mean training loss of the optimizer steps since the one before.

    A training row stands for `num_steps` steps; version 0.1 did not write their number: all since the row before.
    """
    table: list[Row] = []
    total, num_steps, last_step = 0.0, 0, 0
    for row in rows:
        if row["kind"] == "train":
            if row.get("loss") is not None:
                own_steps = row.get("num_steps", row["step"] - last_step)
                total += row["loss"] * own_steps
                num_steps += own_steps
            last_step = row["step"]
        elif row["kind"] == "validation":
            mean_loss = total / num_steps if num_steps else None
            flat = {key: value for key, value in row.items() if key != "kind"}
            table.append({"epoch": flat.pop("epoch"), "step": flat.pop("step"), "train_loss": mean_loss, **flat})
            total, num_steps = 0.0, 0
    columns = list(dict.fromkeys(key for row in table for key in row))
    write_csv(path, columns, table)


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and row.get("kind") in ("train", "validation") and type(row.get("step")) is int
    return row if known else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
