"""What a rank has of the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal

from segformer_spark.distributed.environment import Launch
from segformer_spark.run.console import logger

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stop_with_launcher(launch: Launch) -> None:
    """Have the kernel send SIGTERM to this rank when torchrun is gone: its ranks would train on, seen by nobody.

    SLURM ends the ranks of a step itself.
    """
    if launch.launcher != "torchrun":
        return
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        logger.warning("this rank will not notice when torchrun is gone: %s", os.strerror(ctypes.get_errno()))
    elif os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
