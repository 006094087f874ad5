"""`checkpoints`: list, prune, export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segformer_spark.checkpoint.names import committed, step_of
from tests.ranks import run_on_ranks
from tests.training.short_run import short_run
from tests.verbs import leave


@pytest.fixture(scope="module")
def many(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of each of its nine steps."""
    path = tmp_path_factory.mktemp("many") / "run"
    settings = ("output.keep_checkpoints=20", "output.checkpoint_every_steps=1")
    run_on_ranks(1, short_run, str(spark_root), str(path), settings)
    return path


def test_list_prune_and_export(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(many, tmp_path / "run"))
    assert leave("checkpoints", "list", str(run)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [str(step) for step in range(1, 10)]
    assert all("intact" in line for line in lines)
    (best,) = [int(line.split()[1]) for line in lines if line.endswith("best model")]
    target = tmp_path / "models" / "step_5"
    assert leave("checkpoints", "export", str(run), "--step", "5", "--output", str(target)) == 0
    stored = load_file(run / "checkpoints" / "step-00000005" / "model.safetensors")
    for name, tensor in load_file(target / "model.safetensors").items():
        assert torch.equal(tensor, stored[name])
    assert leave("verify", str(target)) == 0
    assert leave("checkpoints", "prune", str(run), "--keep", "2", "--keep-every", "4") == 0
    assert [step_of(path) for path in committed(run / "checkpoints")] == sorted({4, 8, 9, best})
    damaged = run / "checkpoints" / "step-00000008" / "state.json"
    damaged.write_text(damaged.read_text()[:-5])
    capsys.readouterr()
    assert leave("checkpoints", "list", str(run)) == 1
    assert f"{damaged}: the file is damaged" in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    assert leave("checkpoints", "list", str(run)) == 1
    assert "the newest, of step 9, is gone" in capsys.readouterr().out


def test_mistakes(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, message in (
        (("list", str(tmp_path)), "this is not a run directory"),
        (("export", str(many), "--step", "77", "--output", str(tmp_path / "x")), "there is no such checkpoint"),
        (("export", str(many), "--output", str(tmp_path)), "this exists"),
    ):
        assert leave("checkpoints", *given) == 2
        assert message in capsys.readouterr().err
