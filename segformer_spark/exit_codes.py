"""Exit statuses of the command line, as batch scripts and other programs read them. Imports nothing heavy."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a verb leaves with; statuses above 128 are signals."""

    GOOD = 0
    FOUND_WRONG = 1
    """Something was checked and is wrong: `doctor`, `data check`."""
    USER_ERROR = 2
    """A mistake in input, configuration or environment, or in the command line itself."""
    OWN_FAILURE = 70
    """A mistake of ours, with its traceback (EX_SOFTWARE of sysexits.h)."""
    STOPPED = 85
    """A run was asked to stop, saved its state and can be resumed."""
    PORT_TAKEN = 86
    """The port that the ranks of a job were told to meet at is in use."""
    PEER_LOST = 87
    """A rank has not heard from another one, or has other weights: a node or the network is gone or broken."""
    DIVERGED = 88
    """A step was not finite, and the next attempt takes the training images in another order."""


class RequeueVerdict(IntEnum):
    """What `job requeue` decided, for slurm/common.sh."""

    REQUEUED = 0
    """The job runs again."""
    COMPLETE = 10
    """There is nothing left to do."""
    GIVEN_UP = 11
    """No further attempt."""
    NOT_OURS = 12
    """SLURM or the user decides."""
