from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.errors import UserError
from segformer_spark.training.tune import (
    BatchTrial,
    find_batch_size,
    find_lr,
    range_test,
    recommend,
)
from tests.ranks import Group, run_on_ranks
from tests.tiny import TINY_SETTINGS
from tests.training.short_run import SHORT


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 1e0, 61).tolist()
    losses = [2.0 if lr < 1e-4 else max(0.5, 2.0 - 0.8 * i) for i, lr in enumerate(rates, start=-20)]
    result = range_test(rates, iter(losses))
    assert result.suggestion is not None
    assert 1e-4 < result.suggestion < 1e-3


def test_it_ends_when_the_loss_explodes_and_has_no_advice_when_it_never_falls() -> None:
    result = range_test(np.geomspace(1e-6, 1, 100).tolist(), iter([1.0] * 20 + [100.0] * 80))
    assert len(result.rates) < 30
    assert range_test(np.geomspace(1e-6, 1, 50).tolist(), iter([1.0 + 0.01 * i for i in range(50)])).suggestion is None


def test_the_smoothed_curve_is_an_unbiased_exponential_mean() -> None:
    result = range_test([1, 2, 3], iter([3.0, 1.0, 2.0]))
    weights = [0.9**2, 0.9, 1.0]
    assert result.smoothed[2] == pytest.approx(
        sum(w * x for w, x in zip(weights, [3, 1, 2], strict=True)) / sum(weights)
    )
    assert result.smoothed[0] == 3.0


def search(group: Group, root: str, output: str) -> tuple[int, float]:
    config = load_config(overrides=[*SHORT, "training.batch_size=4", f"data.root={root}"]).config
    result = find_lr(config, group, low=1e-6, high=1e-1, num_steps=12, output=Path(output))
    return len(result.rates), result.losses[0]


def test_on_real_steps(spark_root: Path, tmp_path: Path) -> None:
    """Twelve steps take four epochs of three: the data goes round."""
    number, loss = run_on_ranks(1, search, str(spark_root), str(tmp_path))[0]
    rows = list(csv.DictReader((tmp_path / "lr_range.csv").open()))
    assert len(rows) == number
    assert float(rows[0]["loss"]) == pytest.approx(loss)
    assert json.loads((tmp_path / "lr_range.json").read_text())["configured"] == 1e-3
    assert (tmp_path / "lr_range.png").stat().st_size > 5000


def refused(group: Group) -> str:
    try:
        find_lr(load_config().config, group, low=1e-1, high=1e-3, num_steps=10, output=Path("x"))
    except UserError as error:
        return str(error)
    return ""


def test_rates_that_do_not_rise() -> None:
    assert "the rates must rise" in run_on_ranks(1, refused)[0]


def trials(group: Group, limit: float) -> list[BatchTrial]:
    config = load_config(overrides=[*TINY_SETTINGS, "data.image_size=512"]).config
    return find_batch_size(config, ["a", "b"], group, limit_gib=limit, largest=4)


@pytest.mark.sweep
def test_batch_sizes_double_until_memory_or_the_limit_ends() -> None:
    found = run_on_ranks(1, trials, 100.0)[0]
    assert [trial.micro_batch for trial in found] == [1, 2, 4]
    assert found[2].memory_gib > found[1].memory_gib > found[0].memory_gib
    assert found[1].images_per_s == pytest.approx(2 / found[1].seconds)
    limit = (found[1].memory_gib + found[2].memory_gib) / 2
    assert [trial.micro_batch for trial in run_on_ranks(1, trials, limit)[0]] == [1, 2]


def test_the_smallest_size_near_the_best_throughput_is_recommended() -> None:
    sizes = [BatchTrial(1, 1.0, 1.0, 1.0, 0.5), BatchTrial(2, 1.0, 1.99, 1.5, 1.0), BatchTrial(4, 2.0, 2.0, 2.5, 2.0)]
    assert recommend(sizes).micro_batch == 2
    with pytest.raises(UserError, match="not even one image fits"):
        recommend([])
