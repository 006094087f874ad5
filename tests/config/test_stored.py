from __future__ import annotations

from pathlib import Path

import pytest

from segformer_spark.config.load import PROJECT_ROOT, load_config
from segformer_spark.config.stored import as_begun
from segformer_spark.run.directory import dump_config

SPARK = PROJECT_ROOT / "configs" / "spark_b2.yaml"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The configuration of a run that was begun when configs/spark_base.yaml said fp32."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config(SPARK, overrides=["training.precision=fp32"])))
    return path


def test_a_run_begun_in_fp32_keeps_it(begun: Path) -> None:
    now = load_config(SPARK)
    assert now.config.training.precision == "tf32"
    assert as_begun(now, begun).config.training.precision == "fp32"


@pytest.mark.parametrize("chosen", ["tf32", "bf16"])
def test_what_somebody_chooses_stays_and_is_compared(begun: Path, chosen: str) -> None:
    now = load_config(SPARK, overrides=[f"training.precision={chosen}"])
    assert as_begun(now, begun).config.training.precision == chosen


def test_a_run_begun_in_tf32_goes_on_so(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config(SPARK)))
    resolved = load_config(SPARK)
    assert as_begun(resolved, path) is resolved
