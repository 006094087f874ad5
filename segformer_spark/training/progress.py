"""Where a run stands, and how that is stored in and taken from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from segformer_spark.checkpoint.store import StoredState
from segformer_spark.data.sampler import Position
from segformer_spark.engine.state import EngineState
from segformer_spark.training.best import BestTracker
from segformer_spark.training.schedule import Plateau


@dataclass
class IntervalSums:
    """Sums over the optimizer steps since the last log line.

    Attributes:
        loss: over num_steps steps; grad_norm: over the num_norms steps that had one; skipped: steps without an update.
    """

    loss: float = 0.0
    num_steps: int = 0
    grad_norm: float = 0.0
    num_norms: int = 0
    skipped: int = 0

    def add(self, loss: float, grad_norm: float | None, *, applied: bool) -> None:
        """Count one step."""
        self.loss += loss
        self.num_steps += 1
        if grad_norm is not None:
            self.grad_norm += grad_norm
            self.num_norms += 1
        self.skipped += not applied


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        position: epoch and optimizer steps done in it; with the seed, the sampler's whole state.
        step: optimizer steps done in all.
        validated_step: step of the last validation.
        epoch_seconds: time per finished epoch; unfinished is the time of the one under way.
        step_seconds: time in training steps, those that were done again after a resume counted once.
        interval: the steps that no log line has reported yet.
        plateau: what the schedule of that name knows of the validations.
    """

    position: Position = field(default_factory=Position)
    step: int = 0
    validated_step: int | None = None
    epoch_seconds: list[float] = field(default_factory=list)
    unfinished_seconds: float = 0.0
    step_seconds: float = 0.0
    interval: IntervalSums = field(default_factory=IntervalSums)
    plateau: Plateau = field(default_factory=Plateau)

    def advance(self, steps_per_epoch: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.position.step += 1
        if self.position.step == steps_per_epoch:
            self.position = replace(self.position, epoch=self.position.epoch + 1, step=0)


def to_stored(engine: EngineState, progress: Progress, best: BestTracker, configuration: dict[str, Any]) -> StoredState:
    """Put everything that a run needs to resume into plain tensors and JSON."""
    state = {
        "progress": asdict(progress),
        "best": {
            "score": best.score,
            "step": best.step,
            "patience_score": best.patience_score,
            "since_rise": best.since_rise,
        },
        "optimizer_step": engine.optimizer_step,
        "loss_scaler": engine.loss_scaler,
        "parameter_names": sorted(engine.parameters),
        **configuration,
    }
    return StoredState({**engine.parameters, **engine.buffers}, engine.moments, state, engine.average)


def engine_state(stored: StoredState) -> EngineState:
    """The engine's part of a checkpoint."""
    names = set(stored.state["parameter_names"])
    return EngineState(
        parameters={name: tensor for name, tensor in stored.model.items() if name in names},
        buffers={name: tensor for name, tensor in stored.model.items() if name not in names},
        moments=stored.moments,
        optimizer_step=stored.state["optimizer_step"],
        loss_scaler=stored.state["loss_scaler"],
        average=stored.average,
    )


def progress_of(state: Mapping[str, Any]) -> Progress:
    """The counters of a checkpoint's JSON; before 0.2 it had neither interval nor plateau."""
    raw = dict(state["progress"])
    own = {
        "position": Position(**raw["position"]),
        "interval": IntervalSums(**raw.get("interval", {})),
        "plateau": Plateau(**raw.get("plateau", {})),
    }
    return Progress(**{**raw, **own})


def restore_best(state: Mapping[str, Any], best: BestTracker) -> None:
    """Set scores, step and counter; patience and min_delta stay as configured now. Before 0.2 there was one score."""
    raw = state["best"]
    best.score, best.step = raw["score"], raw["step"]
    best.patience_score = raw.get("patience_score", raw["score"])
    best.since_rise = raw["since_rise"] if "since_rise" in raw else raw["since_best"]
