"""Where a run stands, and how that is stored in and taken from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from segformer_spark.checkpoint.store import StoredState
from segformer_spark.data.sampler import Position
from segformer_spark.engine.state import EngineState
from segformer_spark.training.best import BestTracker


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        position: epoch and optimizer steps done in it; with the seed, the sampler's whole state.
        step: optimizer steps done in all.
        validated_step: step of the last validation.
        epoch_seconds: time per finished epoch; unfinished is the time of the one under way.
    """

    position: Position = field(default_factory=Position)
    step: int = 0
    validated_step: int | None = None
    epoch_seconds: list[float] = field(default_factory=list)
    unfinished_seconds: float = 0.0

    def advance(self, steps_per_epoch: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.position.step += 1
        if self.position.step == steps_per_epoch:
            self.position = Position(self.position.epoch + 1, 0)


def to_stored(engine: EngineState, progress: Progress, best: BestTracker, configuration: dict[str, Any]) -> StoredState:
    """Put everything that a run needs to resume into plain tensors and JSON."""
    state = {
        "progress": asdict(progress),
        "best": {"score": best.score, "step": best.step, "since_best": best.since_best},
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


def progress_of(stored: StoredState) -> Progress:
    """The counters of a checkpoint."""
    raw = dict(stored.state["progress"])
    return Progress(**{**raw, "position": Position(**raw["position"])})


def restore_best(stored: StoredState, best: BestTracker) -> None:
    """Set score, step and counter; patience and min_delta stay as configured now."""
    raw = stored.state["best"]
    best.score, best.step, best.since_best = raw["score"], raw["step"], raw["since_best"]
