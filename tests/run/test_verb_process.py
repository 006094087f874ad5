from __future__ import annotations

import sys

import pytest

from segformer_spark.errors import UserError
from segformer_spark.run.verb_process import run_verb, set_options, verb_command


def test_several_processes_go_through_torchrun() -> None:
    assert verb_command(["runs"]) == [sys.executable, "-m", "segformer_spark", "runs"]
    command = verb_command(["train", "--dry-run"], 2)
    assert command[:4] == [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert command[4:] == ["--nproc-per-node", "2", "-m", "segformer_spark", "train", "--dry-run"]


def test_a_verb_that_fails_is_an_error_and_its_own_message_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    run_verb("help", ["--help"])
    with pytest.raises(UserError, match=r"the list failed with status 2; see the messages above"):
        run_verb("the list", ["runs", "/no/such/folder"])
    assert "/no/such/folder" in capfd.readouterr().err


def test_overrides_become_options() -> None:
    assert set_options(["a.b=1", "c.d=[2, 3]"]) == ["--set", "a.b=1", "--set", "c.d=[2, 3]"]
