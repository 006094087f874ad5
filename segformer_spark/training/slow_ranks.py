"""Names a rank that takes longer than the others: all wait for it, and their own numbers do not show which it is."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from segformer_spark.distributed.process_group import Group
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.run.console import logger

_RATIO, _LEAST_SECONDS = 1.5, 0.02
_WHAT = ("loads", "encodes")


class OwnTimes:
    """The time that this rank alone needs in a step: for its images, and for the encoder, which waits for nobody.

    On a GPU the encoder is timed there, by events that are read when the ranks compare.
    """

    def __init__(self, model: SegmentationModel, group: Group, every: int = 100) -> None:
        """
        Args:
            every: steps between two comparisons.
        """
        self.group, self.every = group, every
        self._loading, self._encoding, self._steps = 0.0, 0.0, 0
        self._began: Any = None
        self._events: list[tuple[Any, Any]] = []
        self._named: set[int] = set()
        if group.world_size > 1:
            model.register_forward_pre_hook(self._begin)
            list(model.taps.values())[-1].register_forward_hook(self._end)

    def loaded(self, seconds: float) -> None:
        """The images of one step took so long to come."""
        self._loading += seconds
        self._steps += 1

    def compare(self, step: int) -> None:
        """Every so many steps. Collective."""
        if self.group.world_size == 1 or step % self.every or not self._steps:
            return
        timed = [pair for pair in self._events if pair[1].query()]  # the last step may not be done
        self._encoding += sum(start.elapsed_time(end) for start, end in timed) / 1000
        share = len(timed) / len(self._events) if timed else 1.0
        own = (self._loading / self._steps, self._encoding / share / self._steps, socket.gethostname())
        found = self.group.gather(own)
        self._loading, self._encoding, self._steps, self._events = 0.0, 0.0, 0, []
        slow = slow_ranks([values[:2] for values in found])
        if self.group.is_main:
            for rank, text in slow.items():
                if rank not in self._named:
                    logger.warning("rank %d on %s is slow: %s; all ranks wait for it", rank, found[rank][2], text)
        self._named = set(slow)

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        if not model.training or not torch.is_grad_enabled():
            self._began = None
        elif self.group.device.type == "cuda":
            event: Any = torch.cuda.Event
            self._began = event(enable_timing=True)
            self._began.record()
        else:
            self._began = time.perf_counter()

    def _end(self, tap: nn.Module, inputs: Any, output: Any) -> None:
        began, self._began = self._began, None
        if began is None:
            return
        if isinstance(began, float):
            self._encoding += time.perf_counter() - began
        else:
            event: Any = torch.cuda.Event
            end = event(enable_timing=True)
            end.record()
            self._events.append((began, end))


def slow_ranks(seconds: Sequence[tuple[float, float]]) -> dict[int, str]:
    """Which ranks, by their number, need 1.5 times as long as the median, and for what.

    Args:
        seconds: per rank for its images and for the encoder, of a step.
    """
    slow = {}
    for number, what in enumerate(_WHAT):
        usual = statistics.median_low(values[number] for values in seconds)
        for rank, values in enumerate(seconds):
            if values[number] > max(_RATIO * usual, usual + _LEAST_SECONDS):
                own, others = 1000 * values[number], 1000 * usual
                slow[rank] = f"it {what} for {own:.0f} ms in a step, half of the ranks for {others:.0f} ms or less"
    return slow
