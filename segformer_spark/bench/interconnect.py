"""The interconnect between ranks: measured, and as a model of what collectives take on it.

Thakur, Rabenseifner and Gropp 2005, sections 3, 4: with latency a, time per byte b, p ranks and n bytes, an all-reduce
by halving and doubling takes 2 log2(p) a + 2 (p - 1) / p n b, an all-gather half of it.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from segformer_spark.distributed.process_group import Group

_LARGE_VALUES = 2**24
_SMALL_REPEATS, _LARGE_REPEATS = 30, 5


@dataclass(frozen=True)
class Interconnect:
    """Latency of a message in seconds, and bytes per second of one rank in each direction."""

    latency: float
    bandwidth: float

    def all_gather(self, ranks: int, num_bytes: float) -> float:
        """Seconds until all ranks have all `num_bytes`, each having held its share."""
        return math.ceil(math.log2(ranks)) * self.latency + (ranks - 1) / ranks * num_bytes / self.bandwidth

    def all_reduce(self, ranks: int, num_bytes: float) -> float:
        """Seconds until all ranks have the sum of `num_bytes`."""
        return 2 * self.all_gather(ranks, num_bytes)


def measure_interconnect(group: Group) -> Interconnect | None:
    """All-reduces of 4 bytes and of 64 MiB, solved for latency and bandwidth; None for one rank alone. Collective."""
    if group.world_size == 1:
        return None
    small, large = _seconds(group, 1, _SMALL_REPEATS), _seconds(group, _LARGE_VALUES, _LARGE_REPEATS)
    latency = small / (2 * math.ceil(math.log2(group.world_size)))
    moved = 2 * (group.world_size - 1) / group.world_size * 4 * _LARGE_VALUES
    return Interconnect(latency, moved / max(large - small, 1e-9))


def _seconds(group: Group, values: int, repeats: int) -> float:
    buffer = torch.zeros(values, device=group.device)
    times = []
    for _ in range(repeats + 1):
        group.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer)
        if group.device.type == "cuda":
            torch.cuda.synchronize(group.device)
        times.append(max(group.gather(time.perf_counter() - started)))
    return statistics.median(times[1:])
