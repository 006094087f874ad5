"""`train`: configuration -> run -> data -> model -> loss -> engine -> checkpoints -> loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.checkpoint.compatibility import check_compatible
from segformer_spark.checkpoint.store import CheckpointStore, StoredState, read, verify
from segformer_spark.config.fields import flatten
from segformer_spark.config.load import ResolvedConfig, run_path
from segformer_spark.config.schema import Config
from segformer_spark.config.stored import as_begun
from segformer_spark.data.identity import FileDigests, read_digests
from segformer_spark.data.label_check import split_findings
from segformer_spark.data.loader import TrainLoader
from segformer_spark.distributed.hang_watch import watch_for_hangs
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import CheckpointError, RunTakenOver, TrainingDiverged, UserError
from segformer_spark.files.paths import real_path
from segformer_spark.models.weights import check_weights_folder
from segformer_spark.run.console import duration, log_file, logger
from segformer_spark.run.directory import RunDirectory, open_for_training, sweep_leftovers
from segformer_spark.run.lease import Lease, Owner, lease_run, refuse_if_leased
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.run.outcome import Outcome
from segformer_spark.training.best import BestTracker
from segformer_spark.training.checkpointer import Checkpointer
from segformer_spark.training.extension import LENGTH, Extension, find_extension
from segformer_spark.training.loop import Loop
from segformer_spark.training.model_export import ModelExport
from segformer_spark.training.plan import lr_warning, selection_metric, single_image_note
from segformer_spark.training.progress import Progress, engine_state, progress_of, restore_best
from segformer_spark.training.record import TrainingRecord
from segformer_spark.training.reordering import (
    Divergence,
    forget_divergences,
    order_from,
    read_divergences,
    remember_divergence,
)
from segformer_spark.training.reporter import Reporter
from segformer_spark.training.same_start import refuse_different_starts
from segformer_spark.training.setup import Setup, prepare
from segformer_spark.training.sinks import ConsoleSink, FileSink, Sink
from segformer_spark.training.slow_ranks import OwnTimes
from segformer_spark.training.spikes import SpikeSink
from segformer_spark.training.stop import StopRequest
from segformer_spark.training.tensorboard import TensorBoardSink
from segformer_spark.training.throughput import Throughput
from segformer_spark.training.trackers import open_tracker
from segformer_spark.training.validation import Validation


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says beside the configuration.

    Attributes:
        resume: None, "auto" (newest intact checkpoint, or a fresh start), a checkpoint folder, or "auto,FOLDER" (the
            run's own checkpoints, and the folder as long as there are none).
        overwrite: replace an existing run.
        local_cache: this node's own copy of the data cache.
        accept_changes: continue although images or masks are others than before.
    """

    resume: str | None = None
    overwrite: bool = False
    local_cache: Path | None = None
    accept_changes: bool = False


@dataclass
class _Start:
    """Where a training begins; `stored` is the checkpoint at `source`, on the first rank; None for a fresh start.

    `changed_sets` are those of train and val that are others than at the checkpoint; `warnings` are for the log;
    `updates` is known in the end: the optimizer steps that changed the weights.
    """

    run: RunDirectory
    store: CheckpointStore
    source: Path | None
    stored: StoredState | None
    progress: Progress
    best: BestTracker
    changed_sets: Sequence[str] = ()
    warnings: Sequence[str] = ()
    extension: Extension | None = None
    num_divergences: int = 0
    updates: int = 0


def run_training(
    resolved: ResolvedConfig, options: TrainOptions, group: Group, stop: StopRequest
) -> tuple[RunDirectory, Outcome]:
    """Run or continue an experiment. Collective.

    Raises:
        UserError: anything in configuration, data, weights or checkpoints that cannot be used.
    """
    place = RunDirectory(run_path(resolved.config))
    if options.resume is not None and place.is_run():
        resolved = as_begun(resolved, place.config)
    refuse_different_starts(resolved.config, group)
    files = read_digests(place.data_files, Path(resolved.config.data.root))
    setup = prepare(resolved.config, group, options.local_cache, files)
    start = _find_start(resolved, options, setup, group)
    run, progress = start.run, start.progress
    with _leased(run, progress.step, group) as lease, log_file(run.log if group.is_main else None):
        group.on_main(lambda: _begin(start, resolved, files, is_new=options.resume is None))
        record = TrainingRecord(
            run, resolved, group, setup.plan, setup.schedule.total_steps, setup.sampler.steps_per_epoch, progress
        )
        record.announce(setup.train_set, setup.val_set)
        record.accept(start.changed_sets)
        record.extend(start.extension)
        if progress.step == 0:
            group.on_main(lambda: _say_findings(resolved.config, setup))
        for warning in (
            *start.warnings,
            lr_warning(resolved.config, setup.plan),
            single_image_note(resolved.config, setup.plan, setup.model),
        ):
            if warning is not None and group.is_main:
                logger.warning("%s", warning)
        reporter = _reporter(run, resolved.config, setup, group, progress)
        try:
            outcome = _train(resolved.config, setup, start, reporter, group, stop, lease, record.first_step)
            if lease is not None:
                lease.outcome = outcome.value
        except BaseException as error:
            if isinstance(error, TrainingDiverged) and error.step is not None:
                _say_diverged(error, error.step, start, resolved.config, is_main=group.is_main)
            _close_after_failure(record, reporter, progress, start.best, error)
            raise
        record.record["updates"] = start.updates
        group.on_main(lambda: record.finish(outcome, progress, start.best, None))
        _log_outcome(start, outcome, resolved.config)
    return run, outcome


def _say_diverged(error: TrainingDiverged, step: int, start: _Start, config: Config, *, is_main: bool) -> None:
    """How to look at it and, where the configuration allows it, have the next attempt take another order."""
    error.goes_on = start.num_divergences < config.training.reorder_after_divergence
    if not is_main:
        return
    logger.info("look at it: segformer-spark replay %s --step %d", start.run.path, step)
    if error.goes_on:
        remember_divergence(start.run, Divergence(step, start.progress.position.order))
        logger.warning("the next attempt goes on from the last checkpoint, with the training images in another order")


def _train(
    config: Config,
    setup: Setup,
    start: _Start,
    reporter: Reporter,
    group: Group,
    stop: StopRequest,
    lease: Lease | None,
    after_first_step: Callable[[], None],
) -> Outcome:
    """Build engine and loop, train, and export the final model. Collective."""
    run, progress, best = start.run, start.progress, start.best
    loader = TrainLoader(
        *(setup.train_set, config, setup.sampler),
        pin=group.device.type == "cuda",
        interrupted=lambda: stop.reason is not None,
    )
    with ExitStack() as closing:
        closing.callback(loader.close)
        engine = Engine(setup.model, setup.loss, config, setup.plan, group)
        if start.source is not None:
            engine.import_state(None if start.stored is None else engine_state(start.stored))
            start.stored = None  # its tensors are mapped files, which a network file system cannot delete
            logger.info("resumed from %s at step %d", start.source, progress.step)
        group.on_main(lambda: reporter.start(progress.step, validated=progress.validated_step == progress.step))
        export = ModelExport(engine, config, setup.train_set.classes)
        checkpointer = Checkpointer(start.store, engine, config.output, setup.configuration)
        closing.callback(checkpointer.close)
        outcome = Loop(
            engine=engine,
            loader=loader,
            schedule=setup.schedule,
            validation=Validation(engine, setup, config, reporter, best, export, run.best),
            checkpointer=checkpointer,
            reporter=reporter,
            config=config.training,
            progress=progress,
            stop=stop,
            lease=lease,
            compare_every=config.hardware.compare_ranks_every,
            hang_watch=closing.enter_context(watch_for_hangs(group.activity, group.rank, config.hardware.hang_timeout)),
            own_times=OwnTimes(engine.model, group),
            after_first_step=after_first_step,
        ).run()
        start.updates = engine.num_updates
        if outcome is not Outcome.STOPPED:
            export.write(run.final, progress, {})
            if best.score is not None and best.step is not None:
                reporter.hparams(flatten(config.model_dump()), best.metric, best.score, best.step)
            group.raise_common(reporter.failure)
        group.on_main(reporter.close)
    return outcome


def _find_start(resolved: ResolvedConfig, options: TrainOptions, setup: Setup, group: Group) -> _Start:
    """The run directory and where to continue from; writes nothing yet. Collective."""
    config = resolved.config
    run, source = group.on_main(lambda: _open_run(resolved, options))
    store = CheckpointStore(run.checkpoints, config.output.keep_checkpoints, config.output.keep_every)
    divergences = group.on_main(lambda: read_divergences(run)) if options.resume is not None else []
    stopping = config.training.early_stopping
    metric = selection_metric(config, setup.val_set.classes)
    best = BestTracker(patience=stopping.patience, min_delta=stopping.min_delta, metric=metric)
    if source is None:
        progress = Progress()
        progress.position.order = order_from(progress.position, 0, divergences)
        return _Start(run, store, None, None, progress, best, num_divergences=len(divergences))
    stored, state = _read_on_main(source, group)
    warnings: list[str] = []
    accept = options.accept_changes
    try:
        longer = find_extension(state, config, setup.sampler.steps_per_epoch, setup.schedule)
        extends = () if longer is None else LENGTH
        changed = check_compatible(
            state, config, setup.plan, setup.configuration, accept_changes=accept, extends=extends
        )
        progress = progress_of(state)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: its state.json is not one of this package: {error!r}") from error
    if longer is not None:
        warnings.append(longer.describe())
    if "val" in changed:
        progress.validated_step = None
    elif real_path(source.parent) == real_path(run.checkpoints):
        restore_best(state, best)
        lost = None if best.score is None else group.on_main(lambda: _why_lost(run.best))
        if lost is not None:
            warnings.append(f"the best model, of step {best.step}, is lost ({lost}): it is chosen anew from here on")
            best.score = best.step = None
    else:
        logger.info("the checkpoint is of another run: the best model is chosen anew from here on")
    if state["num_train_images"] != len(setup.train_set):
        progress.position.step = 0  # the order of another number of images has nothing in common with this one
    order = order_from(progress.position, progress.step, divergences)
    if order != progress.position.order:
        warnings.append(f"a later step diverged: from step {progress.step + 1} on the images come in order {order}")
        progress.position.order = order
    return _Start(run, store, source, stored, progress, best, changed, warnings, longer, len(divergences))


def _why_lost(best: Path) -> str | None:
    """Why a run's best model cannot be used any more; None where it can."""
    try:
        check_weights_folder(best)
    except CheckpointError as error:
        return error.problem
    return None


def _read_on_main(source: Path, group: Group) -> tuple[StoredState | None, dict[str, Any]]:
    """A checkpoint on the first rank, and its JSON on all. Collective."""
    found: list[StoredState] = []

    def read_it() -> dict[str, Any]:
        found.append(read(source))
        return found[0].state

    state = group.on_main(read_it)
    return (found[0] if found else None), state


def _reporter(run: RunDirectory, config: Config, setup: Setup, group: Group, progress: Progress) -> Reporter:
    sinks: list[Sink] = [FileSink(run), ConsoleSink(), SpikeSink(run.path)] if group.is_main else []
    if group.is_main and config.output.tensorboard:
        sinks.append(TensorBoardSink(run.tensorboard, MetricsLog(run.metrics)))
    if group.is_main:
        sinks += [open_tracker(name, run.path, flatten(config.model_dump())) for name in config.output.trackers]
    throughput = Throughput(
        global_batch=setup.plan.global_batch,
        world_size=group.world_size,
        total_steps=setup.schedule.total_steps,
        device=group.device,
        progress=progress,
    )
    return Reporter(sinks, throughput, every=config.output.log_every_steps, folder=run.path)


@contextmanager
def _leased(run: RunDirectory, from_step: int, group: Group) -> Iterator[Lease | None]:
    """Rank 0, which alone writes, has the run's lease for the duration of the block."""
    with ExitStack() as stack:
        leases: list[Lease] = []
        group.on_main(
            lambda: leases.append(stack.enter_context(lease_run(run.path, from_step, Owner.here(os.environ))))
        )
        yield leases[0] if leases else None
    # Who leaves first with a status other than 0 has srun end the others: not before the lease is released.
    group.barrier()


def _open_run(resolved: ResolvedConfig, options: TrainOptions) -> tuple[RunDirectory, Path | None]:
    """The run directory and the checkpoint to continue from; writes nothing yet."""
    refuse_if_leased(run_path(resolved.config), Owner.here(os.environ))
    run = open_for_training(run_path(resolved.config), resume=options.resume is not None, overwrite=options.overwrite)
    store = CheckpointStore(run.checkpoints, resolved.config.output.keep_checkpoints)
    store.clean()
    return run, _choose_checkpoint(store, options.resume)


def _begin(start: _Start, resolved: ResolvedConfig, files: FileDigests, *, is_new: bool) -> None:
    sweep_leftovers(start.run)
    if is_new:
        forget_divergences(start.run)
    start.run.create(resolved)
    files.write(start.run.data_files)
    start.store.discard_after(start.progress.step)


def _choose_checkpoint(store: CheckpointStore, resume: str | None) -> Path | None:
    """The checkpoint to continue from; None starts afresh."""
    if resume is None:
        return None
    automatic, _, first = resume.partition(",")
    if resume != "auto" and not (automatic == "auto" and store.has_begun):
        path = Path(first if automatic == "auto" else resume)
        if not path.is_dir():
            raise CheckpointError(f"--resume {resume}: there is no such checkpoint folder; give one, or auto")
        verify(path)
        return path
    newest = store.newest_intact()
    if newest is None:
        logger.info("--resume auto: no checkpoint yet, starting from the beginning")
    return newest


def _close_after_failure(
    record: TrainingRecord, reporter: Reporter, progress: Progress, best: BestTracker, error: BaseException
) -> None:
    """Leave the record behind if possible; a second failure (the disk is still full) must not hide the first."""
    if isinstance(error, RunTakenOver):
        return
    actions: list[Callable[[], None]] = [lambda: record.finish(Outcome.FAILED, progress, best, error), reporter.close]
    for action in actions:
        try:
            action()
        except (UserError, OSError) as second:
            logger.warning("%s", second)


def _say_findings(config: Config, setup: Setup) -> None:
    """What is conspicuous about the training labels."""
    for finding in split_findings(config.data, config.data.train_split, setup.train_set):
        logger.warning("training labels: %s; `segformer-spark data check` reads all of them", finding)


def _log_outcome(start: _Start, outcome: Outcome, config: Config) -> None:
    run, progress, best = start.run, start.progress, start.best
    spent = duration(sum(progress.epoch_seconds) + progress.unfinished_seconds)
    logger.info("%s after %d steps, %d updates applied, %s", outcome.value, progress.step, start.updates, spent)
    if best.score is not None:
        logger.info("best %s %.4f at step %s: %s", best.metric, best.score, best.step, run.best)
    if outcome is Outcome.STOPPED:
        logger.info("continue with: segformer-spark train --config %s --resume auto", run.config)
    else:
        logger.info("next: segformer-spark evaluate %s", run.path)
