from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from segformer_spark.data import workers
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.data.workers import LoadingInterrupted, begin, end_workers, iterate, worker_options
from segformer_spark.errors import UserError

ROOT = Path(__file__).parents[2]


def test_loader_processes_outlive_the_signals_that_reach_all_processes_of_a_job(spark_root: Path) -> None:
    """SLURM's SIGTERM and a terminal's Ctrl-C: the main process saves first and needs its batches for that."""
    dataset = SparkDataset(spark_root, "train")
    others = set(psutil.Process().children())
    batches = eval_loader(dataset, range(len(dataset)), EvalLoading(InferenceView((32, 32)), 1, 1))
    next(batches)
    own = set(psutil.Process().children()) - others
    assert own
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in own:
            worker.send_signal(number)
    assert len(list(batches)) == len(dataset) - 1


def test_a_loader_process_ends_some_time_after_it_was_told_to(
    spark_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a main process that fails would wait for it for ever."""
    monkeypatch.setattr("segformer_spark.data.workers._GRACE_SECONDS", 1)
    dataset = SparkDataset(spark_root, "train")
    others = set(psutil.Process().children())
    batches = eval_loader(dataset, range(len(dataset)), EvalLoading(InferenceView((32, 32)), 1, 1))
    next(batches)
    own = set(psutil.Process().children()) - others
    for worker in own:
        worker.terminate()
    with pytest.raises(RuntimeError, match="killed by signal"):  # torch notices
        psutil.wait_procs(own, timeout=20)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in own)


def test_processes_end_with_the_iteration_and_do_not_wait_for_the_garbage_collector(spark_root: Path) -> None:
    """An exception whose frame holds it is a cycle that would keep a loader and its processes."""
    dataset = SparkDataset(spark_root, "train")
    others = set(psutil.Process().children())
    gc.disable()
    try:
        batches = eval_loader(dataset, [0, 10**6], EvalLoading(InferenceView((32, 32)), 1, 1))
        try:
            list(batches)
        except IndexError as error:
            kept = error
        assert not set(psutil.Process().children()) - others
        assert kept.__traceback__ is not None
    finally:
        gc.enable()


class Slow(Dataset[int]):
    """One item that comes late, or never."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


def slow_loader(seconds: float) -> DataLoader[int]:
    return DataLoader(Slow(seconds), batch_size=None, **worker_options(1))


@pytest.fixture
def short_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_QUESTION_SECONDS", 0.2)
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 1)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


@pytest.mark.usefixtures("short_questions")
def test_a_batch_that_comes_late_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_SAY_AFTER", 0.3)
    with caplog.at_level("WARNING", "segformer_spark"):
        assert list(iterate(slow_loader(1.2))) == [0]
    assert "waiting for the next batch of images, since 0 s" in caplog.text


@pytest.mark.usefixtures("short_questions")
def test_processes_that_do_nothing_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SILENCE_LIMIT", 0.8)
    with pytest.raises(UserError, match="have done nothing for .* Does the file system of the data set answer"):
        list(iterate(slow_loader(60)))


@pytest.mark.usefixtures("short_questions")
def test_a_request_to_stop_ends_the_wait() -> None:
    asked = time.monotonic() + 0.5
    running = begin(slow_loader(60), lambda: time.monotonic() > asked)
    with pytest.raises(LoadingInterrupted):
        list(running)
    end_workers(running)


@pytest.mark.usefixtures("short_questions")
def test_processes_that_answer_late_at_the_start_of_an_epoch_are_waited_for() -> None:
    loader = DataLoader(Slow(0), batch_size=None, persistent_workers=True, **worker_options(1))
    running = begin(loader)
    assert list(running) == [0]
    worker = psutil.Process(running._workers[0].pid)  # type: ignore[attr-defined]
    worker.suspend()
    threading.Timer(0.7, worker.resume).start()
    again = begin(loader)
    assert list(again) == [0]
    end_workers(again)


PROGRAM = """
import sys, tempfile
from pathlib import Path
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.errors import UserError
dataset = SparkDataset(Path(sys.argv[1]), "train")
try:
    loading = EvalLoading(InferenceView((256, 256)), 4, 2)
    items = [item for batch in eval_loader(dataset, range(12), loading) for item in batch]
    print("loaded", len(items))
except UserError as error:
    print("refused:", error)
"""


def loaded(spark_root: Path, prepare: str, **environment: str) -> str:
    """What a new process says that loads in a shell that `prepare` set up."""
    script = f'{prepare} && exec {sys.executable} -c "$0" "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, PROGRAM, str(spark_root)]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert done.stdout, done.stderr
    return done.stdout.splitlines()[-1]


def may_mount() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


can_mount = pytest.mark.skipif(not may_mount(), reason="mounts are not allowed here")


@can_mount
def test_a_long_name_of_the_folder_for_temporary_files(spark_root: Path, tmp_path: Path) -> None:
    """Names of Unix sockets have 108 bytes."""
    folder = tmp_path / ("x" * (101 - len(str(tmp_path)) - 1))
    folder.mkdir()
    assert len(str(folder)) == 101
    assert loaded(spark_root, "true", TMPDIR=str(folder)) == "loaded 12"


@can_mount
def test_little_shared_memory_is_a_reason_and_no_hang(spark_root: Path) -> None:
    said = loaded(spark_root, "mount -t tmpfs -o size=200k tmpfs /dev/shm")
    assert said.startswith("refused: a process that loads images ended on")
    assert "df /dev/shm" in said


@can_mount
def test_few_open_files_are_a_reason_and_no_hang(spark_root: Path) -> None:
    assert loaded(spark_root, "ulimit -S -n 40") == "loaded 12", "the limit is raised as far as it may be"
    said = loaded(spark_root, "ulimit -n 40")
    assert said == "loaded 12" or "Too many open files" in said, said


def test_a_batch_that_cannot_be_sent_ends_its_process_with_the_reason(
    spark_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch drops the batch and waits for it."""

    dumps = ForkingPickler.dumps

    def refuse(cls: type, obj: object, protocol: int | None = None) -> Any:
        if os.getpid() != main:
            raise OSError("AF_UNIX path too long")
        return dumps(obj, protocol)

    main = os.getpid()
    monkeypatch.setattr("multiprocessing.reduction.ForkingPickler.dumps", classmethod(refuse))
    dataset = SparkDataset(spark_root, "train")
    with pytest.raises(UserError, match="a batch could not be sent: OSError: AF_UNIX path too long"):
        list(eval_loader(dataset, [0], EvalLoading(InferenceView((32, 32)), 1, 1)))
