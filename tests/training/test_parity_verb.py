from __future__ import annotations

from pathlib import Path

from segformer_spark.config.load import load_config
from segformer_spark.config.schema import Config
from segformer_spark.errors import ConfigError
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
    results = [StageResult(0, [1.0], [1.0], 0.0), StageResult(1, [1.0], [1.001], 1e-3)]
    assert not Parity(results, 1e-5).holds
    assert "FAILED" in describe(Parity(results, 1e-5))[-1]


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
