from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from segformer_spark.errors import UserError
from segformer_spark.run.step_log import StepLog


def filled(path: Path, steps: int) -> StepLog:
    log = StepLog(path)
    for step in range(1, steps + 1):
        log.add(1 / step, None if step == 2 else step / 7)
    log.flush()
    return log


def test_values_come_back_exactly(tmp_path: Path) -> None:
    pairs = filled(tmp_path / "steps.bin", 3).read()
    assert pairs.tolist()[0] == [1.0, 1 / 7]
    assert pairs[2].tolist() == [1 / 3, 3 / 7]
    assert math.isnan(pairs[1, 1]), "no norm"
    assert (tmp_path / "steps.bin").read_bytes()[:8] == np.float64(1.0).tobytes()


def test_steps_that_are_done_again_replace_the_first_ones(tmp_path: Path) -> None:
    log = filled(tmp_path / "steps.bin", 5)
    log.add(9.0, 9.0)  # never written
    log.rewind(3)
    log.add(4.5, 4.5)
    log.flush()
    assert log.read()[:, 0].tolist() == [1.0, 1 / 2, 1 / 3, 4.5]


def test_a_pair_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "steps.bin"
    log = filled(path, 3)
    path.write_bytes(path.read_bytes()[:-5])
    assert len(log.read()) == 2
    log.rewind(2)
    log.add(0.5, 0.5)
    log.flush()
    assert log.read()[:, 0].tolist() == [1.0, 1 / 2, 0.5]


def test_a_run_of_a_version_without_the_file_goes_on(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.bin")
    log.rewind(2)
    log.add(0.5, 0.5)
    log.flush()
    found = log.read()
    assert np.isnan(found[:2]).all()
    assert found[2].tolist() == [0.5, 0.5]


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "missing" / "steps.bin")
    log.add(1.0, 1.0)
    with pytest.raises(UserError, match=r"steps\.bin"):
        log.flush()
