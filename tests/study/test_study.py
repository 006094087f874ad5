"""`compare` and `ablate` from the file to the report, as a user starts them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from segformer_spark.config.study import read_study
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.study import execute
from segformer_spark.study.ablation import switches
from segformer_spark.study.execute import plan_runs
from tests.study.toy import MODELS, RECIPES, write_study
from tests.tiny import TINY_PARAMETERS
from tests.verbs import leave, start_forked

Rows = list[dict[str, str]]
REAL_START = execute._start


def table(path: Path) -> Rows:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(autouse=True, scope="module")
def warmed_trainings() -> Iterator[None]:
    """Trainings start as forks of a warmed process; `make study-demo`'s test starts them as users do."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "_start", start_forked)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def compared(folder: Path) -> Path:
    """The folder of a finished comparison; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = write_study(folder, "toy", MODELS)
        assert leave("compare", "run", str(path)) == 0
    return folder / "studies" / "toy"


def test_comparison_has_all_columns_and_true_figures(compared: Path) -> None:
    rows = table(compared / "comparison.csv")
    assert [row["model"] for row in rows] == ["Tiny", "FPN"]
    fpn = rows[1]
    run = compared / "runs" / "toy-FPN-s1"
    results = json.loads((run / "evaluation" / "val" / "results.json").read_text())
    trained = json.loads((run / "evaluation" / "train" / "results.json").read_text())
    assert float(fpn["val_miou"]) == pytest.approx(results["miou"], abs=1e-6)
    assert float(fpn["val_pixel_acc"]) == pytest.approx(results["pixel_accuracy"], abs=1e-6)
    assert float(fpn["train_miou"]) == pytest.approx(trained["miou"], abs=1e-6)
    assert (fpn["library"], fpn["encoder"], fpn["pretrained"]) == (
        "segmentation_models_pytorch",
        "mobilenet_v2",
        "none",
    )
    assert int(fpn["params_total"]) == int(fpn["params_encoder"]) + int(fpn["params_head"])
    assert int(rows[0]["params_total"]) == TINY_PARAMETERS + 13 * 9
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["images_per_s"] for line in lines if line["kind"] == "train"]
    assert float(fpn["images_per_s"]) == pytest.approx(statistics.median(speeds), abs=1e-3)
    assert (float(fpn["epochs"]), fpn["reference_val_miou"], fpn["global_batch"]) == (2.0, "0.25", "4")
    assert float(fpn["best_epoch"]) in (1.0, 2.0)
    assert float(fpn["peak_memory_mb"]) > 100
    assert float(fpn["s_per_epoch"]) > 0
    assert int(fpn["macs"]) > 1e6


def test_time_and_gains_are_against_the_baseline(compared: Path) -> None:
    tiny, fpn = table(compared / "comparison.csv")
    assert (float(tiny["gain"]), float(tiny["relative_time"])) == (0.0, 1.0)
    gain = float(fpn["val_miou"]) - float(tiny["val_miou"])
    assert float(fpn["gain"]) == pytest.approx(gain, abs=2e-6)
    assert float(fpn["gain_percent"]) == pytest.approx(100 * gain / float(tiny["val_miou"]), abs=0.02)
    spent = [  # of one process each
        sum(json.loads((compared / "runs" / row["run"] / "training_params.json").read_text())["seconds_per_epoch"])
        for row in (tiny, fpn)
    ]
    assert float(fpn["relative_time"]) == pytest.approx(spent[1] / spent[0], rel=1e-3)
    assert float(fpn["device_hours"]) == pytest.approx(spent[1] / 3600, abs=1e-4)
    assert fpn["device"].startswith("CPU: ")
    assert fpn["reference_hours"] == "3.5"
    rows = [json.loads(line) for line in (compared / "runs/toy-FPN-s1/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]
    for column, key in (
        ("last_val_miou", "miou"),
        ("last_val_loss", "val_loss"),
        ("last_train_subset_miou", "train_miou"),
    ):
        assert float(fpn[column]) == pytest.approx(last[key], abs=1e-6)


def test_everything_that_is_missing_is_named_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Weights of two models, a warm-up, a size and a split, each with the runs that need it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("segformer_spark.study.execute._start", lambda command: pytest.fail("a run was started"))
    models = """
  B0: {model.variant: b0, model.pretrained: ade20k}
  ViT: {model.variant: b2, model.name: vit, model.pretrained: imagenet}
  Long: {training.scheduler.warmup_epochs: 5}
  Large: {data.image_size: 96, augmentation.crop.mode: random}
  Small: {model.variant: b2, model.name: fpn, model.encoder: resnet18, data.image_size: 32, training.batch_size: 1}
"""
    text = f"base: base.yaml\nmodels:{models}\nsplits: [val, nowhere]\n"
    path = write_study(folder, "faulty", text)
    for verb in ("run", "check"):
        assert leave("compare", verb, str(path)) == 2
        err = capsys.readouterr().err
        assert "nothing was started, since not all runs can be trained" in err
        assert "segformer-spark weights fetch --variant b0 --source ade20k" in err
        assert "segformer-spark weights fetch --encoder vit_base_patch16_224" in err
        assert re.search(r"warm-up takes 10 steps, the whole training 4; .*\n    for Long", err)
        assert re.search(r"smaller than the crop of 96x96.*\n    for Large", err)
        assert re.search(r"fpn has batch norm over maps of one value per image.*\n    for Small", err)
        assert re.search(r"not 'nowhere'\n    for B0, ViT, Long, Large, Small", err), err


def test_check_says_when_all_is_in_order(compared: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    assert (
        leave(
            "compare",
            "check",
            str(folder / "toy.yaml"),
            "--set",
            "training.epochs=3",
            "--set",
            "output.save_path=x/{name}",
        )
        == 0
    )
    assert "2 runs: weights, data, sizes and batches are in order" in capsys.readouterr().out


def test_the_name_of_a_study_is_taken_by_its_file(compared: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    other = folder / "other"
    other.mkdir(exist_ok=True)
    path = write_study(other, "toy", MODELS)
    assert leave("compare", "run", str(path), "--set", "output.save_path=elsewhere/{name}") == 2
    assert (
        "the study name 'toy' is taken: studies/toy holds runs of another file of that name" in capsys.readouterr().err
    )


def test_the_hours_of_a_study_are_added_up(compared: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    """One finished run on this CPU, one to come that is estimated for a GPU."""
    monkeypatch.chdir(folder)
    path = write_study(folder, "toy", MODELS.replace("seeds: [1]", "seeds: [1, 2]"))
    try:
        assert leave("compare", "list", str(path), "--budget", "50h") == 2
        assert "--budget goes with list --estimate" in capsys.readouterr().err
        assert leave("compare", "list", str(path), "--estimate") == 0
        out = capsys.readouterr().out
        assert "CPU-hours in 2 runs: CPU: " in out
        assert out.count("no estimate without --device-model") == 2
        assert "2 of 4 runs are not counted" in out
        options = ("--device-model", "h100", "--budget", "1h")
        assert leave("compare", "list", str(path), "--estimate", *options) == 0
        out = capsys.readouterr().out
        assert "GPU-hours in 2 runs: estimate for H100 SXM, training steps alone" in out
        assert "budget 1.0 GPU-hours: 0.00 spent, 1.00 left, 0.00 to come" in out
        assert "it suffices: 1.00 GPU-hours remain" in out
    finally:
        write_study(folder, "toy", MODELS)


def test_anomaly_scores_of_a_study_stand_in_its_report(folder: Path, compared: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    reference = "reference: {Tiny: {anomaly: {max_logit: {auroc: 0.905, aupr: 0.0843}, heat_hybrid: {aupr: 0.0915}}}}"
    path = write_study(folder, "toy", re.sub(r"reference: .*", reference, MODELS))
    try:
        # A setting of the evaluation is none of the training: runs are found by their folders.
        options = ("--methods", "max_logit", "--panels", "0", "--set", "inference.resize=short_side")
        assert leave("anomaly", "eval", "--study", str(path), *options) == 0
        assert leave("compare", "report", str(path), "--output", str(folder / "scored")) == 0
    finally:
        write_study(folder, "toy", MODELS)
        for run in (compared / "runs").iterdir():
            shutil.rmtree(run / "anomaly")
    rows = table(folder / "scored" / "anomaly.csv")
    assert rows == table(folder / "studies" / "toy" / "anomaly.csv")
    assert [(row["model"], row["method"], row["protocol"]) for row in rows] == [
        ("Tiny", "max_logit", "per_image"),
        ("Tiny", "max_logit", "pooled"),
        ("FPN", "max_logit", "per_image"),
        ("FPN", "max_logit", "pooled"),
        ("Tiny", "heat_hybrid", "not measured"),
    ]
    assert [row["reference_auroc"] for row in rows] == ["0.905", "0.905", "", "", ""]
    assert (rows[4]["auroc"], rows[4]["reference_aupr"]) == ("", "0.0915")
    page = (folder / "scored" / "report.html").read_text()
    assert "Which of them the published figures (reference_*) are is not known" in page


def test_the_summary_has_the_other_splits_beside_the_published_figures(compared: Path) -> None:
    runs, summary = (table(compared / f"{name}.csv") for name in ("comparison", "summary"))
    assert [row["train_miou"] for row in summary] == [row["train_miou"] for row in runs]
    assert [row["reference_hours"] for row in summary] == ["", "3.5"]


def test_pairs_are_made_of_the_same_images(compared: Path) -> None:
    (row,) = table(compared / "paired.csv")
    scores = []
    for model in ("Tiny", "FPN"):
        images = table(compared / "runs" / f"toy-{model}-s1" / "evaluation" / "val" / "per_image.csv")
        own = {i["image"]: [float(v) for k, v in i.items() if k.startswith("iou_") and v] for i in images}
        scores.append({name: statistics.fmean(values) for name, values in own.items()})
    expected = statistics.fmean(scores[0][name] - scores[1][name] for name in scores[0])
    assert (row["first"], row["second"], row["num_images"]) == ("Tiny", "FPN", "6")
    assert float(row["difference"]) == pytest.approx(expected, abs=1e-6)


def test_figures_and_the_report(compared: Path) -> None:
    for name in ("curves", "tradeoffs", "resolution", "paired", "predictions_street_hazards"):
        picture = cv2.imread(str(compared / f"{name}.png"))
        assert picture is not None, name
        assert picture.std() > 5
    grid = cv2.imread(str(compared / "predictions_street_hazards.png"))
    assert grid.shape[1] == 4 * 260, "input, truth and two models"
    page = (compared / "report.html").read_text()
    assert "mIoU leaves void pixels out; val_miou_void_as_error counts them" in page
    assert page.count("data:image/png;base64,") == 5
    assert "made up" in page
    assert str(compared) not in page


def test_a_second_run_trains_nothing(compared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "segformer_spark.study.execute._start", lambda command: pytest.fail("a finished run was started again")
    )
    before = (compared / "runs" / "toy-Tiny-s1" / "training_params.json").read_bytes()
    assert leave("compare", "run", str(folder / "toy.yaml"), "--output", str(folder / "again")) == 0
    assert (compared / "runs" / "toy-Tiny-s1" / "training_params.json").read_bytes() == before
    assert table(folder / "again" / "comparison.csv") == table(compared / "comparison.csv")


def test_list_says_what_is_missing(compared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    path = write_study(folder, "toy", MODELS.replace("seeds: [1]", "seeds: [1, 2]"))
    try:
        assert leave("compare", "list", str(path)) == 0
        out = capsys.readouterr().out
        states = [plan.state for plan in plan_runs(read_study(path))]
        assert leave("compare", "report", str(path), "--output", str(folder / "partial")) == 0
        assert "2 of 4 runs are not finished and left out" in capsys.readouterr().out
    finally:
        write_study(folder, "toy", MODELS)
    assert states == ["completed", "missing", "completed", "missing"]
    assert "RESUME=auto sbatch --array=1,3 --ntasks-per-node=1 --gpus-per-node=1 slurm/segformer_sweep.sh" in out
    assert len(table(folder / "partial" / "comparison.csv")) == 2


def test_runs_of_other_settings_are_not_taken_for_these(
    compared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    assert leave("compare", "report", str(folder / "toy.yaml"), "--set", "training.optimizer.lr=2e-3") == 2
    err = capsys.readouterr().err
    assert "this run was trained with other settings than the study has now" in err
    assert "training.optimizer.lr was 0.001, now 0.002" in err
    assert leave("compare", "report", str(folder / "toy.yaml"), "--set", "training.global_batch_size=8") == 2
    assert "the global batch was 4, now 8" in capsys.readouterr().err
    assert leave("compare", "list", str(folder / "toy.yaml"), "--set", "output.save_path=one") == 2
    assert "several runs would lie in one" in capsys.readouterr().err


def test_evaluations_of_another_model_are_made_anew(
    compared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    results = compared / "runs" / "toy-Tiny-s1" / "evaluation" / "val" / "results.json"
    true = json.loads(results.read_text())
    stale = {**true, "miou": 0.999, "record": {**true["record"], "card": {**true["record"]["card"], "step": 1}}}
    results.write_text(json.dumps(stale))
    assert leave("compare", "report", str(folder / "toy.yaml"), "--output", str(folder / "fresh")) == 0
    assert json.loads(results.read_text())["miou"] == true["miou"]


@pytest.fixture(scope="module")
def ablated(folder: Path) -> Path:
    """The folder of a finished ablation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert leave("ablate", "run", str(write_study(folder, "flips", RECIPES))) == 0
    return folder / "studies" / "flips"


def test_ablation_compares_with_the_first_recipe(ablated: Path) -> None:
    rows = table(ablated / "ablation.csv")
    columns = "name switches scale_min scale_max seed best_epoch val_miou delta_vs_none seconds"
    assert list(rows[0]) == columns.split()
    by = {(row["name"], row["seed"]): row for row in rows}
    assert len(by) == 4
    for seed in ("1", "2"):
        none, flip = by["none", seed], by["+ flip", seed]
        assert float(none["delta_vs_none"]) == 0
        difference = float(flip["val_miou"]) - float(none["val_miou"])
        assert float(flip["delta_vs_none"]) == pytest.approx(difference, abs=2e-6)
        assert (none["switches"], flip["switches"]) == ("none", "flip")
    found = json.loads((ablated / "results.json").read_text())["recipes"]
    deltas = [float(by["+ flip", seed]["delta_vs_none"]) for seed in ("1", "2")]
    assert found[1]["delta_vs_none"] == pytest.approx(statistics.fmean(deltas), abs=1e-6)
    half = 12.706 * statistics.stdev(deltas) / 2**0.5
    assert found[1]["high"] - found[1]["delta_vs_none"] == pytest.approx(half, rel=1e-3, abs=1e-6)
    assert cv2.imread(str(ablated / "ablation.png")).std() > 5
    assert "mIoU leaves void pixels out" in (ablated / "report.html").read_text()


def test_a_study_can_begin_with_some_of_its_seeds(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, "flips", RECIPES))
    assert [(one.index, one.run.seed) for one in plan_runs(study, seeds=[2])] == [(1, 2), (3, 2)]
    with pytest.raises(ConfigError, match="its seeds are 1, 2; --seeds takes of these"):
        plan_runs(study, seeds=[1, 7])


def test_references_stand_beside_an_ablation(ablated: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = write_study(folder, "flips", RECIPES + "reference: {+ flip: {val_miou: 0.5}}\n")
    assert leave("ablate", "report", str(path), "--output", str(folder / "beside")) == 0
    rows = table(folder / "beside" / "ablation.csv")
    assert [row["reference_miou"] for row in rows if row["seed"] == "1"] == ["", "0.5"]


def test_a_request_to_stop_reaches_the_training(tmp_path: Path) -> None:
    """SIGTERM is passed on, SIGINT left to the terminal: the child ends by itself, and its status counts."""
    import os
    import signal
    import sys
    import threading
    import time

    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (time.sleep(0.5), sys.exit(85)))\n"
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.05)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    threading.Thread(target=ask, daemon=True).start()
    before = signal.getsignal(signal.SIGINT)
    assert REAL_START([sys.executable, "-c", code]) == 85
    assert signal.getsignal(signal.SIGINT) is before


def test_switches_are_named() -> None:
    from segformer_spark.config.schema import AugmentationConfig, CropConfig

    off = {"horizontal_flip": 0.0, "vertical_flip": 0.0, "affine": 0.0, "color": 0.0, "blur": 0.0}
    assert switches(AugmentationConfig(**off)) == "none"
    on = {**off, "color": 0.5, "blur": 0.5, "crop": CropConfig(mode="variable")}
    assert switches(AugmentationConfig(**on)) == "colour jitter + blur + variable crops"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODELS, "an ablation has two recipes or more"),
        (RECIPES.replace("  Tiny:", "  other: {}\n  Tiny:"), "2 combinations of model and data"),
    ],
)
def test_what_is_no_ablation(tmp_path: Path, text: str, message: str, capsys: Any) -> None:
    assert leave("ablate", "list", str(write_study(tmp_path, "no", text))) == 2
    assert message in capsys.readouterr().err


def test_a_failing_run_does_not_keep_the_others_from_training(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from segformer_spark.study.execute import train_missing

    path = write_study(tmp_path, "some", MODELS)
    started = []

    def fake(command: list[str]) -> int:
        started.append(command[command.index("--sweep-index") + 1])
        return 2 if started == ["0"] else 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segformer_spark.study.execute._start", fake)
    study = read_study(path)
    with pytest.raises(UserError, match=r"1 of 2 runs failed: some-Tiny-s1"):
        train_missing(study, plan_runs(study), [], 1)
    assert started == ["0", "1"]
    shutil.rmtree(tmp_path / "streets")
    assert leave("compare", "report", str(path)) == 2
    assert "no run is finished yet" in capsys.readouterr().err


def test_an_unknown_model_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segformer_spark.study.execute._start", lambda command: pytest.fail("started"))
    path = write_study(tmp_path, "wrong", MODELS.replace("model.name: fpn", "model.name: fpm"))
    assert leave("compare", "run", str(path)) == 2
    assert "there is no model 'fpm'; did you mean fpn" in capsys.readouterr().err


def test_a_study_is_one_process(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert leave("compare", "list", str(write_study(tmp_path, "toy", MODELS))) == 2
    assert "studies run in one process" in capsys.readouterr().err
