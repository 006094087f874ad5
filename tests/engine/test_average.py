from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from segformer_spark.config.load import load_config
from segformer_spark.engine.average import WeightAverage
from segformer_spark.errors import ConfigError
from tests.engine.test_parity import make_engine, own_batches
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run

EMA = ("training.ema.decay=0.9",)


def test_the_average_follows_the_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.6)
    expected = model[0].weight.detach().double().numpy().copy()
    for t in range(8):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 3))
        model(torch.randn(4, 3))
        average.update(model)
        decay = min(0.6, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double().numpy()
    np.testing.assert_allclose(average.values["0.weight"].numpy(), expected, rtol=1e-5)
    assert int(average.values["1.num_batches_tracked"]) == 8


def test_weights_come_back_bit_by_bit() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError), average.in_place_of(model):
        assert torch.equal(model.weight, average.values["weight"])
        raise RuntimeError
    assert torch.equal(model.weight, before)


def averages(group: Group, stage: int) -> dict[str, Any]:
    engine = make_engine(group, stage, overrides=EMA)
    by_hand = {name: value.clone() for name, value in engine.model.state_dict().items()}
    for step in range(3):
        engine.train_step(own_batches(step, engine.plan, group.rank), step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in engine.model.state_dict().items():
            by_hand[name] = decay * by_hand[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
    exported = engine.weights()
    assert group.is_main or exported == {}
    assert engine.average is not None
    exported = exported or {engine.names[name]: value for name, value in engine.average.values.items()}
    with engine.averaged():
        inside = {name: value.clone() for name, value in engine.model.state_dict().items()}
    return {
        "far": max(float((by_hand[n].float() - exported[s].float()).abs().max()) for n, s in engine.names.items()),
        "inside": all(torch.equal(inside[n], exported[s]) for n, s in engine.names.items()),
        "moved": any(not torch.equal(v, exported[engine.names[n]]) for n, v in engine.model.state_dict().items()),
    }


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 1), (2, 2)])
def test_the_engine_averages_evaluates_and_exports(world: int, stage: int) -> None:
    for result in run_on_ranks(world, averages, stage):
        assert result["far"] < 1e-6
        assert result["inside"]
        assert result["moved"], "the trained weights are others"


def test_a_resumed_run_has_the_same_average(spark_root: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_on_ranks(1, short_run, str(spark_root), str(whole), EMA)
    run_on_ranks(1, short_run, str(spark_root), str(cut), EMA, None, 4)
    assert (next((cut / "checkpoints").glob("step-*")) / "ema.safetensors").is_file()
    run_on_ranks(1, short_run, str(spark_root), str(cut), EMA, "auto")
    expected, found = (load_file(run / "final" / "model.safetensors") for run in (whole, cut))
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    trained = load_file(sorted((whole / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
    assert any((trained[name] != value).any() for name, value in expected.items()), "final/ holds the average"


def test_not_under_fp16() -> None:
    with pytest.raises(ConfigError, match="under fp16 the model has none"):
        load_config(overrides=["training.precision=fp16", *EMA])
