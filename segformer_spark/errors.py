"""Errors that are meant for the user: what is wrong, where, and how to mend it."""

from __future__ import annotations


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
