"""Another order of the training images after a step that was not finite: in the same order it would diverge again.

attempts/diverged.jsonl    {"step": 40, "order": 0}: the step, and the order in which the images came
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.data.sampler import Position
from segformer_spark.files.atomic import remove_file, write_text
from segformer_spark.files.json_file import read_json_lines
from segformer_spark.run.directory import RunDirectory


@dataclass(frozen=True)
class Divergence:
    """A step, from 1 on, that was not finite, and the order of the images then."""

    step: int
    order: int


def read_divergences(run: RunDirectory) -> Sequence[Divergence]:
    """Those after which the run went on, or is to; a line that a kill cut off is left out."""
    found = []
    for raw in read_json_lines(_path(run)):
        with suppress(KeyError, TypeError, ValueError):
            found.append(Divergence(int(raw["step"]), int(raw["order"])))
    return found


def remember_divergence(run: RunDirectory, divergence: Divergence) -> None:
    """Have the next attempt take another order."""
    entries = [*read_divergences(run), divergence]
    write_text(_path(run), "".join(json.dumps({"step": e.step, "order": e.order}) + "\n" for e in entries))


def forget_divergences(run: RunDirectory) -> None:
    """A run begins anew here."""
    remove_file(_path(run))


def order_from(position: Position, step: int, divergences: Sequence[Divergence]) -> int:
    """The order in which the images come from here on: after a later step diverged, one that was not tried.

    Args:
        step: optimizer steps that are done.
    """
    tried = [one.order for one in divergences if one.step > step and one.order >= position.order]
    return max(tried) + 1 if tried else position.order


def _path(run: RunDirectory) -> Path:
    return run.attempts / "diverged.jsonl"
