"""A rank as a fork of its agent, which has imported everything: no import at a restart."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from segformer_spark.run.console import logger

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_ORPHANS_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def warm_up(device_type: str) -> None:
    """Import, once, what a training imports, and do what each would do first; start no thread, touch no GPU."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking the CUDA runtime would forbid to fork
    import torch

    from segformer_spark.engine.engine import load_deepspeed

    load_deepspeed(torch.device(device_type))  # before all that imports deepspeed without saying for which device
    import segformer_spark.engine.transfer
    import segformer_spark.training.train  # noqa: F401
    from segformer_spark.run.record import software_record

    software_record()
    gc.collect()
    gc.freeze()  # else a collection in a rank touches, and so copies, every page that it shares with its agent


def device_type() -> str:
    """What this job computes on here. NVML is asked, which knows the granted GPUs and leaves the CUDA runtime alone;
    not without a driver, as torch would ask the runtime then."""
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd")):
        return "cpu"
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class RankProcess:
    """A rank that this agent started."""

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], inherited: Sequence[socket.socket] = ()
    ) -> None:
        """
        Args:
            inherited: connections of the agent, which must close when the agent ends, whatever a rank leaves behind.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        context = multiprocessing.get_context("fork")
        self._process: Any = context.Process(target=_be_rank, args=(os.getpid(), [*arguments], environment, inherited))
        self._process.start()

    def status(self) -> int | None:
        """How it ended, as a shell says it; None while it lives."""
        code: int | None = self._process.exitcode
        return code if code is None or code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL; what it started is left to `end_orphans`."""
        self._process.kill()

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._process.join(seconds)


def adopt_orphans() -> None:
    """Become the parent of what a rank leaves behind: loader processes that hang with it hold memory and files."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(kept: Collection[int]) -> None:
    """Kill every process below this one that does not end by itself, save those of these ids."""
    _, hanging = psutil.wait_procs([p for p in psutil.Process().children() if p.pid not in kept], _ORPHANS_SECONDS)
    for orphan in hanging:
        for process in [*orphan.children(recursive=True), orphan]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    psutil.wait_procs(hanging, 10)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _be_rank(agent: int, arguments: list[str], environment: dict[str, str], inherited: Sequence[socket.socket]) -> None:
    """In the fork."""
    signal.set_wakeup_fd(-1)
    for connection in inherited:
        connection.close()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_with_parent()
    if os.getppid() != agent:
        os._exit(1)
    os.environ.update(environment)
    import torch

    if torch.cuda._is_in_bad_fork():
        logger.warning("the GPU's driver was asked before this rank was forked: it starts in a new interpreter")
        os.execv(sys.executable, [sys.executable, "-m", "segformer_spark", *arguments])
    sys.argv = ["segformer_spark", *arguments]
    runpy.run_module("segformer_spark", run_name="__main__", alter_sys=True)  # as python -m does
