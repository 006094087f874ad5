"""Errors that are meant for the user (what is wrong, where, how to fix it), and exit statuses for batch scripts."""

from __future__ import annotations

EXIT_USER_ERROR = 2
"""Exit status after a UserError, and of a wrong command line."""

EXIT_STOPPED = 85
"""Exit status of a run that was asked to stop, saved its state and can be resumed."""

EXIT_PEER_LOST = 87
"""Exit status of a rank that has not heard from another one: a node or the network between them is gone."""


class UserError(Exception):
    """A mistake in input, configuration or environment.

    The command line prints it as one message without a traceback and leaves with status 2.
    """


class DataError(UserError):
    """A file of a data set that cannot be used; the message names it."""


class ConfigError(UserError):
    """A configuration that is not valid; the message names file, line and key."""


class CheckpointError(UserError):
    """A checkpoint or run directory that cannot be used as asked."""


class TrainingDiverged(UserError):
    """Loss or gradients are no longer finite, or updates were skipped too often in a row."""


class PeersNotFound(UserError):
    """The ranks did not meet; the command line leaves with EXIT_PEER_LOST, since another attempt may succeed."""


class RunTakenOver(UserError):
    """A later attempt holds the run directory; this one must not write into it."""
