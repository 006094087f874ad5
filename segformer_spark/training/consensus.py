"""What all ranks agree on before a step: that each has its batches, and that none was asked to stop."""

from __future__ import annotations

from collections.abc import Sequence

from segformer_spark.data.loader import TrainBatch
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError

_SAVE, _STOP, _FAILED = 1, 2, 3


class Consensus:
    """About the next step. It is asked for at once, and answered while the host does other things. Collective.

    Args:
        batches: this rank's, of one step.
        failure: what this rank met on its way to them: a damaged image, a full disk.
        stops: whether this rank was asked to stop.
        saves: whether this rank finds that a checkpoint is due after the step.
    """

    def __init__(
        self,
        group: Group,
        batches: Sequence[TrainBatch],
        failure: UserError | None,
        *,
        stops: bool,
        saves: bool = False,
    ) -> None:
        self._group, self._batches, self._failure = group, batches, failure
        own = _FAILED if failure is not None else _STOP if stops else _SAVE if saves else 0
        self._answer = group.start_max(own)

    def wait(self) -> None:
        """Until all ranks have answered."""
        self._answer()

    @property
    def saves(self) -> bool:
        """Whether a rank finds that a checkpoint is due after the step."""
        return self._answer() == _SAVE

    def result(self) -> Sequence[TrainBatch] | None:
        """The batches; None when a rank was asked to stop.

        Raises:
            UserError: a rank's failure, on all ranks: none is left waiting in a collective.
        """
        status = self._answer()
        if status == _FAILED:
            self._group.raise_common(self._failure)
        return None if status == _STOP else self._batches
