"""steps.bin against metrics.jsonl: two files that say the same, of every step and of their means."""

from __future__ import annotations

import numpy as np

from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.run.step_log import StepLog


def step_faults(run: RunDirectory) -> list[str]:
    """Where the means of the steps are not those that were logged; nothing for runs of versions without the file."""
    attempts = read_json_object(run.params_json).get("attempts") if run.params_json.is_file() else None
    known = isinstance(attempts, list) and any(isinstance(one, dict) and "world_size" in one for one in attempts)
    rows = [row for row in MetricsLog(run.metrics).rows() if row["kind"] == "train" and "num_steps" in row]
    if not run.steps.is_file():
        return [f"{run.steps.name}: the file is missing"] if known and rows else []
    size, pairs = run.steps.stat().st_size, StepLog(run.steps).read()
    if size != pairs.nbytes:
        return [f"{run.steps.name}: its end is cut off, {size} bytes are no whole number of steps"]
    for row in rows:
        last, count = row["step"], row["num_steps"]
        own = pairs[last - count : last]
        if len(own) != count:
            return [f"{run.steps.name}: has {len(pairs)} steps, {run.metrics.name} goes to {last}"]
        for column, name in enumerate(("loss", "grad_norm")):
            values = own[:, column]
            if np.isnan(own[:, 0]).any() or (name == "grad_norm" and np.isnan(values).all()):
                continue  # of a version without the file, or steps without a norm
            mean = _mean([float(value) for value in values if not np.isnan(value)])
            if row.get(name) is not None and mean != row[name]:
                between = f"steps {last - count + 1} to {last}" if count > 1 else f"step {last}"
                return [f"{run.steps.name}: {name} of {between} is {mean!r}, {run.metrics.name} has {row[name]!r}"]
    return []


def _mean(values: list[float]) -> float:
    """Added one after the other, as training does."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)
