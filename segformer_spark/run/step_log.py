"""steps.bin: loss and gradient norm of every optimizer step, exactly.

Little-endian float64 pairs; that of step N stands at byte 16 * (N - 1). The norm is nan where a step had none (fp16,
after an overflow), both are where a run of an earlier version had no such file.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer_spark.errors import DataError
from segformer_spark.files.atomic import ask_guard, write_error
from segformer_spark.files.regular_file import append_regular, read_regular

_PAIR = np.dtype("<f8")
_BYTES = 2 * _PAIR.itemsize


class StepLog:
    """Adds the pairs of steps one after the other; they reach the file with `flush`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[tuple[float, float]] = []

    def add(self, loss: float, grad_norm: float | None) -> None:
        """The next step's."""
        self._pending.append((loss, math.nan if grad_norm is None else grad_norm))

    def flush(self) -> None:
        """Append what was added.

        Raises:
            UserError: the file cannot be written.
        """
        if not self._pending:
            return
        ask_guard(self.path)
        try:
            with append_regular(self.path) as stream:
                stream.write(np.array(self._pending, _PAIR).tobytes())
        except OSError as error:
            raise write_error(self.path, error) from error
        self._pending = []

    def rewind(self, step: int) -> None:
        """Hold the pairs of the first `step` steps, and go on from there.

        Raises:
            UserError: the file cannot be written.
        """
        self._pending = []
        missing = step - len(self.read())
        ask_guard(self.path)
        try:
            with append_regular(self.path) as stream:
                stream.truncate(_BYTES * min(step, step - missing))
        except OSError as error:
            raise write_error(self.path, error) from error
        self._pending = [(math.nan, math.nan)] * max(0, missing)
        self.flush()

    def read(self) -> NDArray[np.float64]:
        """(steps, 2): loss and norm; a last pair that a kill cut off is left out.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            data = read_regular(self.path)
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise DataError(f"{self.path}: the file cannot be read: {error.strerror}", "Move it away.") from error
        return np.frombuffer(data[: len(data) // _BYTES * _BYTES], _PAIR).reshape(-1, 2).astype(np.float64)
