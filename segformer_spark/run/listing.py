"""The runs of a folder, finished or under way: state, progress, best score, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segformer_spark.errors import DataError, UserError
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import duration, logger
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.metrics_log import MetricsLog, Row
from segformer_spark.run.outcome import Outcome

_SILENT_MINUTES = 15


@dataclass(frozen=True)
class RunSummary:
    """One line of the list.

    Attributes:
        state: as the record has it; "silent" for a run that says it is running and has written nothing for 15 minutes.
        step, total_steps: optimizer steps.
        score, metric: best validation so far.
        seconds: time that the training took so far.
        updated: seconds since something was written.
    """

    name: str
    state: str
    step: int
    total_steps: int | None
    score: float | None
    metric: str
    seconds: float
    updated: float


def find_runs(folder: Path) -> list[RunDirectory]:
    """The run directories directly in `folder`, by name.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the one that holds the runs, by default runs")
    return [run for path in sorted(folder.iterdir()) if (run := RunDirectory(path)).is_run()]


def summarize(run: RunDirectory, now: float | None = None) -> RunSummary:
    """Read what a run says about itself; safe while it trains."""
    record = record_of(run)
    rows: list[Row] = []
    try:
        rows = MetricsLog(run.metrics).rows()
        training = run.load_config().config.training
        metric = training.metric_among({key for row in rows if row["kind"] == "validation" for key in row})
    except UserError as error:
        logger.warning("%s", error)  # a damaged file, or another version's
        metric = "unreadable"
    train = [row for row in rows if row["kind"] == "train"]
    scores = [
        row[metric] for row in rows if row["kind"] == "validation" and row["step"] and row.get(metric) is not None
    ]
    written = [path.stat().st_mtime for path in (run.metrics, run.log, run.params_json) if path.is_file()]
    age = (time.time() if now is None else now) - max(written, default=0.0)
    state = str(record.get("status", "unknown"))
    if state == Outcome.RUNNING and age > 60 * _SILENT_MINUTES:
        state = "silent"
    return RunSummary(
        name=run.path.name,
        state=state,
        step=max(int(record.get("steps", 0)), int(train[-1]["step"]) if train else 0),
        total_steps=record.get("runtime", {}).get("total_steps"),
        score=max(scores, default=None),
        metric=metric,
        seconds=_spent(record, written),
        updated=age,
    )


def record_of(run: RunDirectory) -> dict[str, Any]:
    """training_params of a run; empty for one that is just being set up."""
    try:
        return read_json_object(run.params_json)
    except DataError as error:
        if run.params_json.exists():
            logger.warning("%s", error)
        return {}


def _spent(record: dict[str, Any], written: Sequence[float]) -> float:
    """Time of all attempts; one without an end lasts until the last thing that was written."""
    total = 0.0
    for attempt in record.get("attempts", []):
        began = datetime.fromisoformat(attempt["started"]).timestamp()
        ended = datetime.fromisoformat(attempt["ended"]).timestamp() if "ended" in attempt else None
        if ended is None and attempt is record["attempts"][-1]:
            ended = max(written, default=began)
        total += max(0.0, (began if ended is None else ended) - began)
    return total


def table(summaries: Sequence[RunSummary]) -> list[str]:
    """Aligned lines with a header."""
    width = max([len(summary.name) for summary in summaries] + [4])
    lines = [f"{'run':<{width}}  {'state':<18}{'step':>15}  {'best':<26}{'time':>8}  updated"]
    for one in summaries:
        steps = f"{one.step}/{one.total_steps}" if one.total_steps else str(one.step)
        best = f"{one.metric} {one.score:.4f}" if one.score is not None else "-"
        lines.append(
            f"{one.name:<{width}}  {one.state:<18}{steps:>15}  {best:<26}{duration(one.seconds):>8}  "
            f"{duration(one.updated)} ago"
        )
    return lines


def details(run: RunDirectory) -> list[str]:
    """What there is to know about one run, from its own files."""
    summary, record = summarize(run), record_of(run)
    steps = f"{summary.step} of {summary.total_steps}" if summary.total_steps else str(summary.step)
    best = "-" if summary.score is None else f"{summary.metric} {summary.score:.4f}"
    facts = {"name": summary.name, "state": summary.state, "steps": steps, "best": best}
    lines = [f"{key:<12} {value}" for key, value in facts.items()]
    lines.append(f"{'time':<12} {duration(summary.seconds)}, last written {duration(summary.updated)} ago")
    runtime = record.get("runtime", {})
    hosts = sorted({str(host.get("host")) for host in record.get("hardware", [])})
    for key, value in {
        "world size": runtime.get("world_size"),
        "batch": runtime.get("batch"),
        "hosts": ", ".join(hosts),
        "git": (record.get("software", {}).get("git") or {}).get("commit"),
        "error": record.get("error"),
    }.items():
        if value:
            lines.append(f"{key:<12} {value}")
    for number, attempt in enumerate(record.get("attempts", []), start=1):
        started = datetime.fromisoformat(attempt["started"]).astimezone(UTC)
        lines.append(
            f"{f'attempt {number}':<12} {started:%Y-%m-%d %H:%M} UTC, from step {attempt['from_step']}, "
            f"{attempt.get('status', 'under way or killed')}"
        )
    lines += _validations(MetricsLog(run.metrics).rows(), summary.metric)
    lines += [f"{'model':<12} {folder}" for folder in (run.best, run.final) if folder.is_dir()]
    return lines


def _validations(rows: Sequence[Row], metric: str) -> list[str]:
    recent = [row for row in rows if row["kind"] == "validation"][-5:]
    return [
        f"{'validation' if index == 0 else '':<12} step {row['step']}: {metric} "
        + ("-" if row.get(metric) is None else f"{row[metric]:.4f}")
        for index, row in enumerate(recent)
    ]
