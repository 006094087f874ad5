"""Decisions that are chosen on one half and judged on the other, saved, and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.evaluation.choose_decision import choose_decision
from segformer_spark.evaluation.compare_inference import CompareOptions
from segformer_spark.evaluation.comparison_folder import verify_comparison
from segformer_spark.evaluation.decision import ARGMAX, Decision
from segformer_spark.evaluation.halves import cut_in_halves
from segformer_spark.evaluation.judged_rows import Row, _winner
from segformer_spark.evaluation.postprocessing import Postprocessing
from segformer_spark.evaluation.saved_decision import decision_record, read_decision, write_decision
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.evaluation.tuning import Sampler, joined, tuned
from segformer_spark.files.checksums import check_checksums, write_checksums
from segformer_spark.files.digest import sha256_of
from tests.data.named_images import images
from tests.edited_bytes import edited_bytes
from tests.ranks import Group, run_on_ranks
from tests.sessions import group_of_one
from tests.verbs import leave

NAMES = ("background", "body", "panels")


def test_halves_of_categories_drives_and_groups() -> None:
    found = cut_in_halves(images([str(i) for i in range(10)], ("a", "b"), (0, 1) * 5), None)
    assert found.chosen_on.tolist() == [0, 3, 4, 7, 8]
    drive = cut_in_halves(images([f"seq_{i:03d}" for i in range(30)]), None)
    assert max(drive.chosen_on) < min(drive.judged_on), "no two neighbours of a drive on both sides, but at the cut"
    assert len(set(drive.groups)) == 6
    assert not {drive.groups[i] for i in drive.chosen_on} & {drive.groups[i] for i in drive.judged_on}
    names = [f"{drive}_{i}" for drive in "abcd" for i in range(5)]
    grouped = cut_in_halves(images(names), "drive")
    assert {names[i][0] for i in grouped.chosen_on} & {names[i][0] for i in grouped.judged_on} == set()
    with pytest.raises(UserError, match=r"the 30 images are of fewer groups \(seq\) than the 2 parts"):
        cut_in_halves(images([f"seq_{i:03d}" for i in range(30)]), "drive")
    with pytest.raises(UserError, match="3 images are too few"):
        cut_in_halves(images(["a", "b", "c"]), None)


def test_thresholds_of_a_biased_model_are_found() -> None:
    """Logits that see too little of a class: the search gives it back, and no metric falls."""
    rng = np.random.default_rng(0)
    sampler = Sampler(6, NAMES, 255)
    for _ in range(6):
        mask = np.zeros((32, 32), np.uint8)
        row, column = rng.integers(2, 16, 2)
        mask[row : row + 12, column : column + 12] = 1
        mask[row + 3 : row + 7, column + 3 : column + 7] = 2
        logits = 2.0 * torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 3).movedim(-1, 0).float()
        logits += torch.from_numpy(rng.normal(0, 0.7, (3, 32, 32))).float()
        logits[0] += 1.5
        sampler.add(logits, mask)
    samples = joined(sampler.parts(), NAMES)
    plain = samples.score(ARGMAX)
    found = tuned(samples)
    constants = samples.score(found["constants"])
    assert constants.value("spark_score") > plain.value("spark_score") + 0.1
    assert constants.value("miou") >= plain.value("miou")
    thresholds = found["constants"].thresholds
    assert thresholds[0] == max(thresholds)
    for name in ("expected IoU, T by score", "expected IoU, T by score, factors"):
        assert samples.score(found[name]).value("spark_score") >= plain.value("spark_score")


def test_a_model_that_no_rule_improves() -> None:
    """The search ends where every rule is worse than argmax."""
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(2, NAMES, 255)
    for _ in range(2):
        logits = torch.randn(3, 16, 16, generator=generator)
        sampler.add(logits, logits.argmax(0).to(torch.uint8).numpy())
    samples = joined(sampler.parts(), NAMES)
    found = tuned(samples)
    assert samples.score(ARGMAX).value("miou") == 1.0
    assert samples.score(found["constants"]).value("miou") == 1.0


def test_the_winner_is_chosen_on_half_a_within_the_time() -> None:
    rows = [
        Row("argmax", "none", {}, ARGMAX, 1.0, {"spark_score": 0.6, "miou": 0.8}, {}),
        Row("slow", "none", {}, ARGMAX, 3.0, {"spark_score": 0.9, "miou": 0.9}, {}),
        Row("lowers mIoU", "none", {}, ARGMAX, 1.0, {"spark_score": 0.8, "miou": 0.79}, {}),
        Row("good", "none", {}, ARGMAX, 1.05, {"spark_score": 0.7, "miou": 0.8}, {"spark_score": 0.1}),
    ]
    assert _winner(rows, "spark_score", 1.1).name == "good"
    assert _winner(rows, "spark_score", 4.0).name == "slow"
    assert _winner(rows[:3], "spark_score", 1.1).name == "argmax"


def compare(group: Group, run: str, output: str, save: bool) -> Any:
    options = CompareOptions(tta=("hflip",), time_limit=1e9)
    resolved = load_config(Path(run) / "config.yaml")
    found = choose_decision(
        *(resolved, Path(run), "val", Path(output), InferenceSettings(batch_size=2), options, group), save=save
    )
    return [(row.name, dict(row.chosen_on), dict(row.judged_on), row.gain) for row in found.rows]


def test_the_comparison_is_the_same_on_any_number_of_ranks(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (one,) = run_on_ranks(1, compare, str(run), str(tmp_path / "one"), True)
    for other in run_on_ranks(2, compare, str(run), str(tmp_path / "two"), False):
        assert other == one
    names = [row[0] for row in one]
    assert names[:2] == ["argmax", "constants"]
    assert {"hflip", "hflip, constants", "expected IoU, T by likelihood", "constants, largest part of body"} <= {*names}
    written = json.loads((tmp_path / "one" / "inference.json").read_text())
    assert [row["name"] for row in written["rows"]] == names
    assert written["num_images"] == [4, 3]
    assert (tmp_path / "one" / "inference.txt").read_text().startswith("on half B")
    saved = read_decision(run / "decision.json")
    assert saved.model_sha256 == sha256_of(run / "best" / "model.safetensors")
    assert saved.chosen["row"]["name"] == written["winner"]
    _is_verified(tmp_path / "one")


def _is_verified(folder: Path) -> None:
    """Nothing is wrong; every edited byte is found, and every figure that does not follow from the counts."""
    found = verify_comparison(folder)
    assert found.faults == []
    assert found.recomputed == ["inference.json: rows, winner, metric", "inference.csv", "inference.txt"]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert [path.name for path in files] == [
        "SHA256SUMS",
        *(f"inference.{end}" for end in ("csv", "json", "npz", "txt")),
    ]
    for edit in edited_bytes(files, 200):
        assert check_checksums(folder) != [], edit
    whole = json.loads((folder / "inference.json").read_text())
    for change in ({"winner": "hflip"}, {"rows": [{**whole["rows"][0], "half_b": {"miou": 0.9}}, *whole["rows"][1:]]}):
        (folder / "inference.json").write_text(json.dumps({**whole, **change}))
        write_checksums(folder)
        assert any("follow" in fault for fault in verify_comparison(folder).faults)


def test_the_verb_writes_a_folder_of_its_own(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    assert leave("evaluate", str(run), "--compare-inference", "--try-tta") == 0
    assert {path.name for path in (run / "evaluation").iterdir()} == {"val-inference"}
    assert not (run / "decision.json").exists()


def saved_run(trained_run: Path, folder: Path, digest: str | None = None) -> Path:
    """A copy of the run whose saved decision takes body wherever it is likelier than 1 : 1000."""
    run = Path(shutil.copytree(trained_run, folder / "run"))
    decision = Decision("thresholds", thresholds=(1.0, 1e-3, 1.0), postprocessing=Postprocessing(max_hole=0.01))
    record = decision_record(
        decision,
        NAMES,
        model_sha256=digest or sha256_of(run / "best" / "model.safetensors"),
        tta="hflip",
        inference={},
        chosen={},
    )
    write_decision(run / "decision.json", record)
    return run


def test_predict_and_submit_use_it_and_evaluate_only_when_asked(
    trained_run: Path, spark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = saved_run(trained_run, tmp_path), str(spark_root / "stream-1-test")
    assert leave("predict", str(run), images, "--output", str(tmp_path / "saved")) == 0
    assert "decision: thresholds, tta hflip, holes up to 0.01 filled" in capsys.readouterr().out
    assert leave("predict", str(run), images, "--decision", "argmax", "--output", str(tmp_path / "plain")) == 0
    shares = {kind: (tmp_path / kind / "predictions.csv").read_text() for kind in ("saved", "plain")}
    assert shares["saved"] != shares["plain"]
    assert leave("submit", str(run), "--images", images, "--output", str(tmp_path / "sent")) == 0
    manifest = json.loads((tmp_path / "sent" / "manifest.json").read_text())
    assert (manifest["decision"]["rule"], manifest["tta"]) == ("thresholds", "hflip")
    assert leave("evaluate", str(run), "--worst", "0", "--output", str(tmp_path / "e1")) == 0
    assert leave("evaluate", str(run), "--worst", "0", "--decision", "saved", "--output", str(tmp_path / "e2")) == 0
    records = [json.loads((tmp_path / name / "results.json").read_text())["record"] for name in ("e1", "e2")]
    assert [one["decision"] is None for one in records] == [True, False]


def test_the_decision_of_another_model_is_not_used(
    trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = saved_run(trained_run, tmp_path, "0" * 64)
    with group_of_one() as group:
        session = Session.open(run, InferenceSettings(use_saved=True), group)
    assert session.settings.decision == ARGMAX
    assert session.tta == "none"
    assert "was made for another model" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "best"}, "rule"),
        ({"temperature": 0}, "temperature"),
        ({"thresholds": {"body": 0.5}}, "no threshold of background, panels"),
        ({"thresholds": {"cow": 0.5}}, "no class cow"),
        ({"thresholds": {"background": 1.0, "body": -1.0, "panels": 1.0}}, "above 0"),
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
    ],
)
def test_damaged_decisions_are_named(trained_run: Path, tmp_path: Path, change: Any, message: str) -> None:
    run = saved_run(trained_run, tmp_path)
    path = run / "decision.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with group_of_one() as group, pytest.raises(ConfigError, match=message):
        Session.open(run, InferenceSettings(use_saved=True), group)


def test_it_is_refused_while_the_run_trains(trained_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from segformer_spark.evaluation import choose_decision as module

    def refuse(run: Path, owner: Any) -> None:
        raise UserError(f"{run}: is being trained")

    monkeypatch.setattr(module, "refuse_if_leased", refuse)
    with group_of_one() as group, pytest.raises(UserError, match="is being trained"):
        compare(group, str(trained_run), str(tmp_path / "x"), True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save-decision",), "--save-decision goes with --compare-inference"),
        (("--compare-inference", "--tta", "hflip"), "leave --decision, --tta out"),
        (("--tta", "spin"), "choose among none, hflip"),
        (("--merge", "x"), "--merge and --predictions ask no model"),
        (("--compare-inference", "--shard", "0/2"), "no --shard"),
    ],
)
def test_options_that_do_not_go_together(
    trained_run: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("evaluate", str(trained_run), *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", [("hub",), pytest.param(("model.onnx", "hub"), marks=pytest.mark.sweep)], ids="-".join
)
def test_exports_carry_it(names: tuple[str, ...], trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    run, images = saved_run(trained_run, tmp_path), str(spark_root / "stream-1-test")
    assert leave("evaluate", str(run), "--worst", "0") == 0
    for name in names:
        kind = "onnx" if name.endswith("onnx") else "safetensors"
        assert leave("export", str(run), "--format", kind, "--output", str(tmp_path / name)) == 0
        given = (str(tmp_path / name), images, "--output", str(tmp_path / f"from_{kind}"))
        assert leave("predict", *given) == 0
        settings = json.loads((tmp_path / f"from_{kind}" / "settings.json").read_text())
        assert settings["decision"]["rule"] == "thresholds"
    low, high = json.loads((run / "evaluation" / "val" / "results.json").read_text())["intervals"]["miou"]
    assert f"- miou: {low:.4f} to {high:.4f}" in (tmp_path / "hub" / "README.md").read_text()
