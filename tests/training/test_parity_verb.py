from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segformer_spark.config.load import load_config
from segformer_spark.config.schema import Config
from segformer_spark.data.loader import TrainBatch
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.launched import StepResult
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.training import parity
from segformer_spark.training.parity import Parity, StageResult, compare_stages, describe
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import SHORT


def compare(group: Group, root: str, fault: bool = False) -> Parity:
    config = load_config(overrides=[*SHORT, f"training.batch_size={4 // group.world_size}", f"data.root={root}"]).config
    if fault:
        original = parity._with_stage

        def faulty(config: Config, stage: int) -> Config:
            training = config.training.model_copy(update={"gradient_clip": 1e-3 * (1 + stage)})
            return original(config.model_copy(update={"training": training}), stage)

        parity._with_stage = faulty
    return compare_stages(config, group)


def test_all_stages_train_alike(spark_root: Path) -> None:
    for result in run_on_ranks(2, compare, str(spark_root)):
        assert [one.stage for one in result.results] == [0, 1, 2]
        assert all(len(one.losses) == 3 for one in result.results)
        assert result.holds, describe(result)
        assert result.results[0].losses[0] != result.results[0].losses[2]


def test_a_difference_is_found() -> None:
    same = StageResult(0, [1.0], [1.0], 0.0, 0.0)
    for other in (
        StageResult(1, [1.0], [1.001], 1e-3, 0.0),
        StageResult(1, [1.0], [float("nan")], float("nan"), 0.0),
        StageResult(1, [1.0], [1.0], 0.0, 1.0),
    ):
        assert not Parity([same, other], 1e-5).holds
        assert describe(Parity([same, other], 1e-5))[-1].startswith("FAILED")
    assert Parity([same, same], 1e-5).holds


def idle(group: Group, root: str) -> Parity:
    """Stage 2 takes part in everything and then throws its update away."""
    config = load_config(overrides=[*SHORT, "training.batch_size=4", f"data.root={root}"]).config
    original = Engine.train_step

    def without_update(self: Engine, batches: Sequence[TrainBatch], step: int) -> StepResult:
        before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        result = original(self, batches, step)
        if self.engine.zero_optimization_stage() == 2:
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(before[name])
        return result

    patched: Any = Engine
    patched.train_step = without_update
    return compare_stages(config, group, num_steps=1)


def test_a_stage_that_does_not_learn_shows_even_in_one_step(spark_root: Path) -> None:
    result = run_on_ranks(1, idle, str(spark_root))[0]
    assert [one.update_difference < 0.1 for one in result.results] == [True, True, False]
    assert not result.holds


def too_many(group: Group, root: str) -> str:
    config = load_config(overrides=[*SHORT, "training.batch_size=4", f"data.root={root}"]).config
    try:
        compare_stages(config, group, num_steps=4)
    except UserError as error:
        return str(error)
    return ""


def test_more_steps_than_an_epoch_has(spark_root: Path) -> None:
    assert "an epoch has 3 steps, 4 were asked for" in run_on_ranks(1, too_many, str(spark_root))[0]


def test_a_fault_in_one_stage_shows(spark_root: Path) -> None:
    assert not run_on_ranks(1, compare, str(spark_root), True)[0].holds


def refused(group: Group) -> str:
    try:
        compare_stages(load_config(overrides=["training.precision=fp16"]).config, group)
    except ConfigError as error:
        return str(error)
    return ""


def test_fp16_has_no_reference() -> None:
    assert "stage 0 has no fp16" in run_on_ranks(1, refused)[0]
