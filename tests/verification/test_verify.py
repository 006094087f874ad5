"""`verify`: every kind of folder, every file of it damaged in turn."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from segformer_spark.errors import UserError
from segformer_spark.files.checksums import write_checksums
from segformer_spark.run.verification import Verification
from segformer_spark.verification.kinds import verify_path
from tests.damage import Damage, cut, empty, flip, remove, zero_tail
from tests.results import add_results
from tests.verbs import leave


@pytest.fixture(scope="module")
def whole_run(trained_run: Path, spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation, a submission and a report."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("whole") / "run"))
    add_results(run, spark_root)
    return run


DAMAGE: tuple[Damage, ...] = (flip, zero_tail, cut, remove, empty)
FREE = {"log.txt", "metrics.jsonl", "history.csv", "curves.png", "README.txt", "training_params.yaml", "newest"}
"""Files of a run without a digest, which say and show what others hold."""


def test_a_run_is_what_was_written(whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("verify", str(whole_run)) == 0
    said = capsys.readouterr().out
    assert "(run): as it was written" in said
    for part in ("best/", "final/", "evaluation/val/", "submission/", "checkpoints/step-"):
        assert part in said
    kind, found = verify_path(whole_run)
    assert (kind, found.faults) == ("run", [])


def test_a_setting_changed_by_hand_is_named(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("epochs: 3", "epochs: 4"))
    assert verify_path(run)[1].faults == ["config.yaml: training.epochs is 4, training_params.json has 3"]


def test_damage_to_any_file_of_a_run_is_named(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    rng = random.Random(0)
    inside = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    guarded = [p for p in inside if p.name not in FREE and p.parts[0] != "attempts" and ".lease" not in p.parts]
    # The configuration and records have no digest: what cannot be read is found.
    read_only = {"config.yaml", "training_params.json", "data_files.json"}
    tried = 0
    for path in guarded:
        for damage in (rng.choice(DAMAGE),):
            if path.parts[0] in read_only and damage in (flip, zero_tail, cut, remove):
                continue
            before = (run / path).read_bytes()
            if damage is cut and path.name == "manifest.json":
                continue  # a line's end, which JSON does without
            damage(run / path, rng)
            faults = verify_path(run)[1].faults
            assert faults, f"{damage.__name__} of {path}"
            (run / path).write_bytes(before)
            tried += 1
    assert tried > 30
    assert verify_path(run)[1].faults == []


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("best", "model"),
        ("evaluation/val", "evaluation"),
        ("submission", "submission"),
        ("checkpoints/step-00000009", "checkpoint"),
    ],
)
def test_parts_are_verified_alone(whole_run: Path, part: str, kind: str) -> None:
    found = verify_path(whole_run / part)
    assert (found[0], found[1].faults) == (kind, [])


def test_swapped_files_and_a_mixed_submission_are_found(whole_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole_run / "submission", tmp_path / "sent"))
    first, second = (folder / f"test_0000{number}_layer.npz" for number in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert verify_path(folder)[1].faults == [f"{first.name}: changed", f"{second.name}: changed"]
    write_checksums(folder)
    assert f"{first.name}: changed" in verify_path(folder)[1].faults, "the manifest lists them, too"
    first.write_bytes(one)
    second.write_bytes(other)
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({**settings, "model_sha256": "0" * 64}))
    write_checksums(folder)
    faults = verify_path(folder)[1].faults
    assert any("model_sha256 is" in fault for fault in faults)
    assert f"{first.name}: is of another model or setting than settings.json" in faults


def test_data_against_its_manifest(own_spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("data", "check", "--root", str(own_spark_root), "--num-workers", "0") == 0
    assert leave("verify", str(own_spark_root)) == 0
    images = sorted((own_spark_root / "images").rglob("*.jpg"))
    flip(images[0], random.Random(0))
    images[1].unlink()
    capsys.readouterr()
    assert leave("verify", str(own_spark_root)) == 1
    said = capsys.readouterr().out
    assert f"wrong: {images[0].relative_to(own_spark_root)}: changed" in said
    assert f"wrong: {images[1].relative_to(own_spark_root)}: No such file" in said


def test_what_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is none of comparison, evaluation, run"):
        verify_path(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        verify_path(tmp_path / "none")


def test_a_report_alone(whole_run: Path, tmp_path: Path) -> None:
    for name in ("report.html", "report.md", "report.html.sha256"):
        shutil.copy(whole_run / name, tmp_path / name)
    found: Verification = verify_path(tmp_path)[1]
    assert found.faults == []
    (tmp_path / "report.md").write_text("all is well")
    assert verify_path(tmp_path)[1].faults == ["report.md: changed"]
