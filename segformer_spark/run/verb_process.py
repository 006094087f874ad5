"""The package's own verbs in processes of their own, as demos and studies start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from segformer_spark.errors import UserError
from segformer_spark.run.console import logger


def verb_command(arguments: Sequence[str], processes: int = 1) -> list[str]:
    """The command of a verb, under torchrun for several processes of this machine."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "segformer_spark", *arguments]


def run_ranks(arguments: Sequence[str], processes: int) -> int:
    """Run a verb on ranks of this machine; the status of the first that failed, 0 when none did."""
    # Each rank chooses its threads itself; torchrun would say that it has set them to 1.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run(verb_command(arguments, processes), env=environment, check=False).returncode


def run_verb(title: str, arguments: Sequence[str], processes: int = 1) -> None:
    """Say what comes, run a verb to its end.

    Raises:
        UserError: it failed; its own message stands above.
    """
    logger.info("%s", title)
    status = subprocess.run(verb_command(arguments, processes), check=False).returncode
    if status != 0:
        raise UserError(f"{title} failed with status {status}; see the messages above")


def set_options(overrides: Sequence[str]) -> list[str]:
    """Overrides of the configuration as options of a verb."""
    return [argument for override in overrides for argument in ("--set", override)]
