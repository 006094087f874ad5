from __future__ import annotations

import gc
import signal
from pathlib import Path

import psutil
import pytest

from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.readers.spark import SparkDataset


def test_loader_processes_outlive_the_signals_that_reach_all_processes_of_a_job(spark_root: Path) -> None:
    """SLURM's SIGTERM and a terminal's Ctrl-C: the main process saves first and needs its batches for that."""
    dataset = SparkDataset(spark_root, "train")
    others = set(psutil.Process().children())
    batches = eval_loader(dataset, range(len(dataset)), EvalLoading(InferenceView(32), 1, 1))
    next(batches)
    workers = set(psutil.Process().children()) - others
    assert workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            worker.send_signal(number)
    assert len(list(batches)) == len(dataset) - 1


def test_a_loader_process_ends_some_time_after_it_was_told_to(
    spark_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a main process that fails would wait for it for ever."""
    monkeypatch.setattr("segformer_spark.data.workers._GRACE_SECONDS", 1)
    dataset = SparkDataset(spark_root, "train")
    others = set(psutil.Process().children())
    batches = eval_loader(dataset, range(len(dataset)), EvalLoading(InferenceView(32), 1, 1))
    next(batches)
    workers = set(psutil.Process().children()) - others
    for worker in workers:
        worker.terminate()
    with pytest.raises(RuntimeError, match="killed by signal"):  # torch notices
        psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


def test_processes_end_with_the_iteration_and_do_not_wait_for_the_garbage_collector(spark_root: Path) -> None:
    """An exception whose frame holds it is a cycle that would keep a loader and its processes."""
    dataset = SparkDataset(spark_root, "train")
    others = set(psutil.Process().children())
    gc.disable()
    try:
        batches = eval_loader(dataset, [0, 10**6], EvalLoading(InferenceView(32), 1, 1))
        try:
            list(batches)
        except IndexError as error:
            kept = error
        assert not set(psutil.Process().children()) - others
        assert kept.__traceback__ is not None
    finally:
        gc.enable()
