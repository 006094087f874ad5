"""Experiment trackers beside TensorBoard: MLflow and Weights & Biases, each with the real library writing to disk.

A tracker is a sink. Nothing here reaches the network: MLflow writes into <run>/mlruns, Weights & Biases into
<run>/wandb in offline mode (`wandb sync` uploads it from a machine with internet), unless the user's own environment
says otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segformer_spark.config.schema import TrackerName
from segformer_spark.errors import UserError
from segformer_spark.files.paths import real_path
from segformer_spark.training.sinks import Sink, ValidationReport, interval_scalars
from segformer_spark.training.throughput import IntervalReport


class _Tracker(Sink):
    """What both have in common: names of scalars, and a record that a resumed run continues."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings

    def interval(self, report: IntervalReport) -> None:
        scalars = {f"train/{name}": value for name, value in interval_scalars(report).items()}
        self._write({**scalars, **{f"lr/{name}": lr for name, lr in report.lrs.items()}}, report.step)

    def validation(self, report: ValidationReport) -> None:
        self._write({f"validation/{name}": value for name, value in report.scalars.items()}, report.step)

    def hparams(self, values: Mapping[str, Any], metric: str, best: float, step: int) -> None:
        self._summarize({f"best/{metric}": best})

    def _write(self, scalars: Mapping[str, float | None], step: int) -> None:
        self._log({name: float(value) for name, value in scalars.items() if value is not None}, step)

    def _log(self, scalars: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def _summarize(self, scalars: dict[str, float]) -> None:
        raise NotImplementedError


class MlflowTracker(_Tracker):
    """MLflow's file store; `mlflow ui --backend-store-uri RUN/mlruns` shows it."""

    def start(self, step: int, *, validated: bool) -> None:
        # Since MLflow 3 the file store has to be asked for, and use is reported unless it is switched off.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise _missing("mlflow", error) from error
        folder = self.run / "mlruns"
        self._client: Any = MlflowClient(tracking_uri=real_path(folder).as_uri())
        experiment = self._client.get_experiment_by_name(self.run.name)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(self.run.name)
        known = self._client.search_runs([identity], max_results=1)
        if known and step > 0:
            self._id = known[0].info.run_id
            self._client.set_tag(self._id, "resumed_at_step", str(step))
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(identity, run_name=self.run.name).info.run_id
        for name, value in self.settings.items():
            self._client.log_param(self._id, name, value)

    def _log(self, scalars: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, 0, step) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _summarize(self, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._client.set_tag(self._id, name, f"{value:.6f}")

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandbTracker(_Tracker):
    """Weights & Biases in offline mode; an attempt that resumes has the id of the first, so that `wandb sync` joins
    them."""

    def start(self, step: int, *, validated: bool) -> None:
        mode = _wandb_mode()
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        identity = hashlib.sha256(str(real_path(self.run)).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project="segformer_spark",
            name=self.run.name,
            id=identity,
            dir=str(self.run),
            config=dict(self.settings),
            mode=mode,
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                disable_job_creation=True,
                x_disable_stats=True,
                x_disable_meta=True,  # user, host and command
                x_disable_machine_info=True,
            ),
        )

    def _log(self, scalars: dict[str, float], step: int) -> None:
        self._run.log(scalars, step=step)

    def _summarize(self, scalars: dict[str, float]) -> None:
        self._run.summary.update(scalars)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[TrackerName, type[_Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}


def open_tracker(name: TrackerName, run: Path, settings: Mapping[str, Any]) -> Sink:
    """The tracker of `output.trackers`.

    Args:
        run: run directory, in which it writes.
        settings: of the run, plain values.
    """
    return _TRACKERS[name](run, {key: _plain(value) for key, value in settings.items()})


def _wandb_mode() -> Any:
    """WANDB_MODE, where somebody has set it."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return os.environ.get("WANDB_MODE", "offline")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else str(value)


def _missing(package: str, error: ImportError) -> UserError:
    return UserError(
        f"output.trackers names {package}, which is not installed ({error.name})",
        f"Install it: pip install 'segformer-spark[{package}]', or take it out of output.trackers.",
    )
