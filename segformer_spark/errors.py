"""Errors that are meant for the user: what is wrong and where, and how to fix it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in input, configuration or environment.

    The command line prints it as one message without a traceback and leaves with ExitCode.USER_ERROR.

    Attributes:
        problem: what is wrong, and where.
        fix: what to do about it; empty where the problem says it.
        shared: all ranks raise it together, so that rank 0 alone prints it.
    """

    def __init__(self, problem: str, fix: str = "", *, shared: bool = False) -> None:
        super().__init__(problem, fix)
        self.problem, self.fix, self.shared = problem, fix, shared

    def __str__(self) -> str:
        return f"{self.problem}. {self.fix}" if self.fix else self.problem


class DataError(UserError):
    """A file of a data set that cannot be used; the message names it."""


class ConfigError(UserError):
    """A configuration that is not valid; the message names file, line and key."""


class CheckpointError(UserError):
    """A checkpoint or run directory that cannot be used as asked."""


class TrainingDiverged(UserError):
    """Loss or gradients are no longer finite, or updates were skipped too often in a row.

    Attributes:
        step: the one that was not finite, from 1 on; None where it is no single one.
        goes_on: another attempt will take the images in another order; the command line leaves with ExitCode.DIVERGED.
    """

    goes_on = False

    def __init__(self, problem: str, fix: str = "", *, shared: bool = False, step: int | None = None) -> None:
        super().__init__(problem, fix, shared=shared)
        self.step = step


class PeersNotFound(UserError):
    """The ranks did not meet; the command line leaves with ExitCode.PEER_LOST, since another attempt may succeed."""


class ReplicasDiffer(UserError):
    """Ranks have different weights; the command line leaves with ExitCode.PEER_LOST, since other nodes may succeed."""


class PortTaken(UserError):
    """The port at which the ranks were to meet is in use; the command line leaves with ExitCode.PORT_TAKEN."""


class RunTakenOver(UserError):
    """A later attempt holds the lease of the run directory; this one must not write into it."""
