"""Ranks that hold different weights are found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segformer_spark.checkpoint.names import committed, step_of
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.replicas import fingerprints
from segformer_spark.errors import ReplicasDiffer
from segformer_spark.models.batch_norm import CrossRankBatchNorm2d
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.hypothesis
@settings(max_examples=100)
@given(st.sampled_from(DTYPES), st.integers(0, 11), st.integers(0, 15))
def test_every_flipped_bit_changes_the_fingerprint(dtype: torch.dtype, place: int, bit: int) -> None:
    model = nn.Linear(3, 4, bias=False).to(dtype)
    before = fingerprints(model)[1].clone()
    words = model.weight.data.view(-1).view(torch.int16)
    words[place] ^= torch.tensor(1 << bit if bit < 15 else -(2**15), dtype=torch.int16)
    assert not torch.equal(fingerprints(model)[1], before)


def test_statistics_of_a_ranks_own_images_are_left_out() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), CrossRankBatchNorm2d(2))
    names, sums = fingerprints(model)
    assert len(names) == len(sums)
    assert [name for name in names if "running" in name] == ["1.running_mean", "1.running_var"]


def flipped(group: Group, root: str, path: str, broken: tuple[int, ...], settings: tuple[str, ...]) -> str:
    """Train; after step 4 one bit of a weight is another on the broken ranks."""
    original = Engine.launch_step

    def flipping(self: Engine, batches: Any, step: int) -> Any:
        launched = original(self, batches, step)
        launched.result()
        if step == 3 and group.rank in broken:
            weight = self.model.network.decode_head.classifier.bias.data
            weight.view(torch.int32)[group.rank] ^= 1
        return launched

    patched: Any = Engine
    patched.launch_step = flipping
    try:
        short_run(group, root, path, ("output.checkpoint_every_steps=1", *settings))
    except ReplicasDiffer as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("world", "broken", "named"), [(3, (1,), "rank 1 on "), (2, (1,), "rank 0 on ")])
def test_the_rank_is_named_and_the_checkpoint_before_it_stands(
    spark_root: Path, tmp_path: Path, world: int, broken: tuple[int, ...], named: str
) -> None:
    run = tmp_path / "run"
    batch = ("training.global_batch_size=6", "training.batch_size=2") if world == 3 else ()
    for message in run_on_ranks(world, flipped, str(spark_root), str(run), broken, batch):
        assert message.startswith(f"step 4: {named}")
        assert "decode_head.classifier.bias" in message
        assert ("differs from the others" in message) == (world == 3)
    assert step_of(committed(run / "checkpoints")[-1]) == 3


def test_without_the_comparison_it_would_go_on(spark_root: Path, tmp_path: Path) -> None:
    settings = ("hardware.compare_ranks_every=null",)
    assert run_on_ranks(2, flipped, str(spark_root), str(tmp_path / "run"), (1,), settings) == ["", ""]
