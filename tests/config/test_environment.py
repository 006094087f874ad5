from __future__ import annotations

import pytest

from segformer_spark.config.environment import config_variables, read_environment
from segformer_spark.config.load import load_config
from segformer_spark.errors import ConfigError


def test_values_are_typed() -> None:
    values = {item.dotted: item.value for item in read_environment({"BATCH_SIZE": "4", "LEARNING_RATE": "6e-5"})}
    assert values == {"training.batch_size": 4, "training.optimizer.lr": 6e-5}


def test_empty_variables_are_as_if_unset() -> None:
    assert read_environment({"EPOCHS": ""}) == []


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("IMAGE_SZIE", "IMAGE_SIZE"),
        ("LEARNINGRATE", "LEARNING_RATE"),
        ("EPOHCS", "EPOCHS"),
        ("BATCH_SIZES", "BATCH_SIZE"),
    ],
)
def test_near_misses_stop(variable: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        read_environment({variable: "1"})


def test_unknown_segformer_variables_stop() -> None:
    with pytest.raises(ConfigError, match="SEGFORMER_LAYERS is not known"):
        read_environment({"SEGFORMER_LAYERS": "1"})


@pytest.mark.parametrize("variable", ["PATH", "HOME", "SLURM_NTASKS", "LOGNAME", "SPEED", "DEVICES", "SEEDS", "PAGER"])
def test_other_variables_are_left_alone(variable: str) -> None:
    assert read_environment({variable: "1"}) == []


def test_wrong_values_name_the_variable() -> None:
    with pytest.raises(ConfigError, match="environment EPOCHS"):
        load_config(environment={"EPOCHS": "many"})


def test_the_names_that_users_know_exist() -> None:
    known = config_variables()
    names = "SEGFORMER_VARIANT IMAGE_SIZE BATCH_SIZE EPOCHS LEARNING_RATE ZERO_STAGE PRECISION DATA_ROOT SAVE_PATH"
    assert set(names.split()) <= known.keys()
