"""One optimizer step of a run once more, from the nearest checkpoint before it: what went in, what came out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from segformer_spark.checkpoint.compatibility import check_compatible
from segformer_spark.checkpoint.names import step_of
from segformer_spark.checkpoint.store import CheckpointStore, StoredState, read, verify
from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import IGNORE_INDEX, Sample
from segformer_spark.data.identity import read_digests, relative_name
from segformer_spark.data.loader import TrainBatch, TrainLoader
from segformer_spark.data.preview import write_samples
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.played_ranks import PlayedRanks
from segformer_spark.errors import CheckpointError, TrainingDiverged, UserError
from segformer_spark.metrics.confusion import confusion_matrix
from segformer_spark.metrics.scores import class_scores
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.metrics_log import MetricsLog, Row
from segformer_spark.run.step_log import StepLog
from segformer_spark.training.extension import LENGTH
from segformer_spark.training.plan import plan_schedule, selection_metric
from segformer_spark.training.progress import Progress, engine_state, progress_of
from segformer_spark.training.schedule import Schedule
from segformer_spark.training.setup import Setup, prepare
from segformer_spark.training.step_evidence import Collector, StepEvidence

LOCAL_RANKS = 4
"""A run of more ranks than this is replayed by one process that plays them."""

TOLERANCE = 1e-4
"""Relative, of a run on CPUs whose ranks one process plays: sums are in another order."""


_NAME = 26


@dataclass(frozen=True)
class Attempt:
    """What an attempt of a run says of its steps: after which one they begin, in which order the images came, and how
    long the run was to be."""

    from_step: int
    order: int
    epochs: int
    max_steps: int | None


@dataclass(frozen=True)
class Plan:
    """How a step is to be rebuilt.

    Attributes:
        checkpoint: to begin from; None: the run's beginning.
        from_step: steps that are done there.
        world_size: ranks of the run at this step.
        played: ranks that one process plays; 1 where each is a process.
        on_gpus: whether the run's ranks had GPUs.
        attempts: of the run, in their order.
    """

    run: RunDirectory
    step: int
    checkpoint: Path | None
    from_step: int
    world_size: int
    played: int
    on_gpus: bool
    attempts: tuple[Attempt, ...] = ()

    def attempt_of(self, step: int) -> Attempt:
        """Who did this step in the end."""
        return [one for one in self.attempts if one.from_step < step][-1]

    @property
    def processes(self) -> int:
        return self.world_size if self.played == 1 else 1

    def describe(self) -> str:
        """What is going to be done, before it is."""
        count, begin = self.step - self.from_step, "the beginning of the run"
        if self.checkpoint is not None:
            begin = f"the checkpoint of step {self.from_step}"
        who = f"{self.world_size} local ranks" if self.processes > 1 else "one process"
        playing = f", which plays the {self.played} ranks of the run" if self.played > 1 else ""
        return f"step {self.step}: {count} step{'s' if count > 1 else ''} to compute, from {begin}, by {who}{playing}"


@dataclass(frozen=True)
class ImageShare:
    """One image of the batch: loss of it alone, and its mean Dice over the classes that it or its prediction has."""

    file: str
    rank: int
    loss: float
    dice: float | None


@dataclass
class Replay:
    """What came out.

    Attributes:
        loss, grad_norm: of the step; `recorded` what the run noted, None where it did not.
        differing: steps on the way, this one included, whose loss or norm is not that of the run, bit by bit.
        diverged: the message of a step that is not finite.
    """

    plan: Plan
    loss: float = math.nan
    grad_norm: float | None = None
    recorded: tuple[float, float] | None = None
    differing: list[int] = field(default_factory=list)
    lr: float = 0.0
    epoch: int = 0
    diverged: str | None = None
    evidence: StepEvidence = field(default_factory=StepEvidence)
    images: list[ImageShare] = field(default_factory=list)

    @property
    def relative_difference(self) -> float | None:
        """Of loss or norm, the larger; None where nothing was recorded."""
        if self.recorded is None or self.diverged is not None:
            return None
        own = (self.loss, math.nan if self.grad_norm is None else self.grad_norm)
        pairs = [(a, b) for a, b in zip(own, self.recorded, strict=True) if not (math.isnan(a) and math.isnan(b))]
        return max((abs(a - b) / max(abs(b), 1e-12) for a, b in pairs), default=0.0)


def plan_replay(run: RunDirectory, step: int, record: dict[str, Any]) -> Plan:
    """Where to begin, and with how many ranks.

    Args:
        record: training_params.json.

    Raises:
        UserError: the run has not come to this step.
    """
    done = int(record.get("steps") or len(StepLog(run.steps).read()))
    last = max(done + 1, len(StepLog(run.steps).read()))  # the one that diverged, or was under way
    if not 1 <= step <= last:
        raise UserError(f"{run.path}: there is no step {step}, the run has done {done}")
    store = CheckpointStore(run.checkpoints, keep=2)
    chosen = None
    for path in reversed([path for path in store.committed() if step_of(path) < step]):
        try:
            verify(path)
        except CheckpointError:
            continue
        chosen = path
        break
    attempts = [one for one in record["attempts"] if one["from_step"] < step]
    world = int(attempts[-1].get("world_size") or record["runtime"]["world_size"])
    on_gpus = any(host.get("device", "").startswith("cuda") for host in record["hardware"])
    alone = world > LOCAL_RANKS or on_gpus
    training = run.load_config().config.training
    length = (training.epochs, training.max_steps)
    known = tuple(
        Attempt(one["from_step"], one.get("order", 0), one.get("epochs", length[0]), one.get("max_steps", length[1]))
        for one in record["attempts"]
    )
    from_step = 0 if chosen is None else step_of(chosen)
    return Plan(run, step, chosen, from_step, world, world if alone else 1, on_gpus, known)


def replay(plan: Plan, group: Group, output: Path, shown_rank: int | None = None) -> Replay:
    """Compute the step; the first rank writes batch.png into `output`. Collective.

    Args:
        shown_rank: whose images are shown; None: those of all ranks.

    Raises:
        UserError: the configuration, the data or the checkpoint cannot be used, or the data are others than then.
    """
    config = _as_replayed(plan)
    files = read_digests(plan.run.data_files, Path(config.data.root))
    setup = prepare(config, group, files=files)
    stored, progress = _state(plan, config, setup, group)
    engine = Engine(setup.model, setup.loss, config, setup.plan, group)
    found = Replay(plan)
    with ExitStack() as closing:
        closing.callback(engine.close)
        if plan.checkpoint is not None:
            engine.import_state(None if stored is None else engine_state(stored))
        engine.played = PlayedRanks(plan.played) if plan.played > 1 else None
        validations = _validations(plan, config, selection_metric(config, setup.val_set.classes))
        recorded = StepLog(plan.run.steps).read()
        loader = TrainLoader(setup.train_set, config, setup.sampler, pin=group.device.type == "cuda")
        closing.callback(loader.close)
        if plan.from_step and progress.validated_step != plan.from_step:  # it was saved before its validation
            _lower(progress, validations, config)
        while progress.step < plan.step:
            attempt = plan.attempt_of(progress.step + 1)
            progress.position.order = attempt.order
            schedule = _schedule(config, setup, attempt)
            setup.sampler.start_at(progress.position)
            batches = iter(loader)
            left = setup.sampler.steps_per_epoch - progress.position.step
            for _ in range(min(left, plan.step - progress.step)):
                if plan.attempt_of(progress.step + 1) != attempt:
                    break
                own = list(itertools.islice(batches, setup.plan.accumulation_steps))
                _step(engine, schedule, own, progress, found, recorded)
                progress.advance(setup.sampler.steps_per_epoch)
                _lower(progress, validations, config)
        judged = _judged(found, setup, own, group.rank, Path(config.data.root))
        found.evidence.logits.clear()
        _show(found, setup, group, output, judged, shown_rank)
    return found


def _lower(progress: Progress, validations: Mapping[int, Sequence[float | None]], config: Config) -> None:
    """What the validation of this step does to the plateau schedule."""
    for score in validations.get(progress.step, ()):
        progress.plateau.update(score, config.training.scheduler.plateau_patience)


def _schedule(config: Config, setup: Setup, attempt: Attempt) -> Schedule:
    """The learning rates of a run of the attempt's length: it may have been extended since."""
    length = {"epochs": attempt.epochs, "max_steps": attempt.max_steps}
    own = config.model_copy(update={"training": config.training.model_copy(update=length)})
    return plan_schedule(own, setup.plan, setup.sampler.steps_per_epoch)


def _as_replayed(plan: Plan) -> Config:
    """The run's configuration, for these processes."""
    config = plan.run.load_config().config
    training = config.training
    if plan.played > 1:
        acc = training.accumulation_steps
        whole = training.global_batch_size or training.batch_size * (acc or 1) * plan.world_size
        update = {"batch_size": training.batch_size * plan.played, "global_batch_size": whole}
        training = training.model_copy(update=update)
    data = config.data.model_copy(update={"num_workers": min(1, config.data.num_workers)})
    return config.model_copy(update={"training": training, "data": data})


def _state(plan: Plan, config: Config, setup: Setup, group: Group) -> tuple[StoredState | None, Progress]:
    """The checkpoint on the first rank, and the counters. Collective."""
    if plan.checkpoint is None:
        return None, Progress()
    path = plan.checkpoint
    found: list[StoredState] = []

    def read_it() -> dict[str, Any]:
        found.append(read(path))
        return found[0].state

    state = group.on_main(read_it)
    check_compatible(state, config, setup.plan, setup.configuration, extends=LENGTH)
    return (found[0] if found else None), progress_of(state)


def _validations(plan: Plan, config: Config, metric: str) -> dict[int, list[float | None]]:
    """{step: scores} by which the plateau schedule lowers the learning rate."""
    if config.training.scheduler.type != "plateau":
        return {}
    rows: list[Row] = [row for row in MetricsLog(plan.run.metrics).rows() if row["kind"] == "validation"]
    found: dict[int, list[float | None]] = {}
    for row in rows:
        if plan.from_step <= row["step"] < plan.step:
            found.setdefault(row["step"], []).append(row.get(metric))
    return found


def _step(
    engine: Engine,
    schedule: Schedule,
    batches: Sequence[TrainBatch],
    progress: Progress,
    found: Replay,
    recorded: NDArray[np.float64],
) -> None:
    number = progress.step + 1
    lr = schedule.lr(progress.step, progress.plateau.reductions)
    engine.set_lr(lr)
    is_last = number == found.plan.step
    drawing: AbstractContextManager[object] = engine.played or nullcontext()
    if not is_last:
        with drawing:
            result = engine.train_step(batches, progress.step)
    else:
        found.lr, found.epoch = lr, progress.position.epoch + 1
        try:
            with Collector(engine).watching() as found.evidence, drawing:
                result = engine.train_step(batches, progress.step)
        except TrainingDiverged as error:
            found.diverged = error.problem
            return
        found.loss, found.grad_norm = result.loss, result.grad_norm
    if number <= len(recorded) and not np.isnan(recorded[number - 1, 0]):
        pair = np.array([result.loss, math.nan if result.grad_norm is None else result.grad_norm])
        if not np.array_equal(pair, recorded[number - 1], equal_nan=True):
            found.differing.append(number)
        if is_last:
            found.recorded = (float(recorded[number - 1, 0]), float(recorded[number - 1, 1]))


def _show(
    found: Replay,
    setup: Setup,
    group: Group,
    output: Path,
    own: Sequence[tuple[ImageShare, Sample]],
    shown_rank: int | None,
) -> None:
    """Write the contact sheet. Collective."""
    gathered = [pair for pairs in group.gather(own) for pair in pairs]
    if shown_rank is not None:
        gathered = [pair for pair in gathered if pair[0].rank == shown_rank]
    found.images = [share for share, _ in gathered]

    def write() -> None:
        output.mkdir(parents=True, exist_ok=True)
        captions = [
            (f"rank {share.rank}  loss {share.loss:.3f}  Dice {_text(share.dice)}  {share.file[-_NAME:]}", sample)
            for share, sample in gathered
        ]
        write_samples(captions, setup.train_set.classes, output / "batch.png")

    group.on_main(write)


def _judged(
    found: Replay, setup: Setup, batches: Sequence[TrainBatch], own_rank: int, root: Path
) -> list[tuple[ImageShare, Sample]]:
    """Loss and Dice of every image of this process, which are of `own_rank` unless it plays several."""
    pairs: list[tuple[ImageShare, Sample]] = []
    shown = iter(found.evidence.logits)
    for batch in batches:
        for number in range(len(batch.images)):
            rank = number // (len(batch.images) // found.plan.played) if found.plan.played > 1 else own_rank
            label = batch.masks[number]
            coarse = next(shown, None)  # none where the step failed before
            loss, dice = (math.nan, None) if coarse is None else _judge(coarse[None], label, setup)
            sample = Sample(batch.images[number].permute(1, 2, 0).contiguous().numpy(), label.numpy())
            file = relative_name(Path(batch.files[number]), root)
            pairs.append((ImageShare(file, rank, loss, dice), sample))
    return pairs


@torch.no_grad()
def _judge(coarse: torch.Tensor, label: torch.Tensor, setup: Setup) -> tuple[float, float | None]:
    loss = float(setup.image_loss.cpu().of_coarse(coarse, label[None]))
    full = functional.interpolate(coarse, size=label.shape, mode="bilinear", align_corners=False)
    classes = coarse.shape[1]
    counts = confusion_matrix(full.argmax(1)[0], label.long(), classes, IGNORE_INDEX)
    dice = class_scores(counts.numpy())["dice"]
    return loss, None if np.isnan(dice).all() else float(np.nanmean(dice))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
