"""What ranks agree on before a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segformer_spark.errors import DataError
from segformer_spark.training.consensus import Consensus
from tests.ranks import Group, run_on_ranks


def outcomes(group: Group) -> list[Any]:
    """Of all well, of a rank that shall stop, and of one that failed, which outweighs a stop."""
    batches: list[Any] = [f"batch of rank {group.rank}"]
    last, found = group.rank == group.world_size - 1, []
    for failure, stops in ((None, False), (None, last), (DataError("image 5") if last else None, group.rank == 0)):
        consensus = Consensus(group, batches, failure, stops=stops)
        group.sum(torch.ones(1))  # a step's own collectives may come in between
        consensus.wait()
        try:
            found.append(consensus.result())
        except DataError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_take_the_same_way(world: int) -> None:
    for rank, found in enumerate(run_on_ranks(world, outcomes)):
        assert found == [[f"batch of rank {rank}"], None, "image 5"]
