from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from segformer_spark.anomaly import figures
from segformer_spark.anomaly.evaluate import MethodResult, evaluate_scores, write_results
from segformer_spark.anomaly.fit import fit_features
from segformer_spark.anomaly.methods import FITTED
from segformer_spark.anomaly.scores import build_score
from segformer_spark.checkpoint.export import load_model
from segformer_spark.cli import main
from segformer_spark.config.schema import DataConfig, InferenceConfig
from segformer_spark.data.dataset import Subset
from segformer_spark.data.demo.streets import write_street_set
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.metrics.ranking import rank
from segformer_spark.models.interface import SegmentationModel
from tests.ranks import Group, run_on_ranks
from tests.sessions import session_of
from tests.tiny import tiny_segformer
from tests.training.short_run import short_run

METHODS = FITTED
VIEW = InferenceView((64, 64), InferenceConfig(resize="native"))


def evaluated(group: Group, root: str, output: str, split: str = "test") -> list[dict[str, object]]:
    dataset = open_dataset(DataConfig(dataset="street_hazards", root=root), split)
    model = tiny_segformer(dataset.classes.names)
    session = session_of(model, dataset, group, settings=InferenceSettings(batch_size=2), resize="native")
    scores = {method: build_score(method) for method in ("msp", "energy")}
    results = evaluate_scores(session, scores, panels=Path(output) / "panels", num_panels=2)
    return group.on_main(lambda: write_results(results, "model", Path(output), {"split": split}))


def msp(logits: torch.Tensor) -> torch.Tensor:
    return 1 - logits.softmax(0).amax(0)


def reference(
    root: Path, model: SegmentationModel | None = None, score_of: Callable[[torch.Tensor], torch.Tensor] = msp
) -> dict[str, list[float]]:
    """A score by the plain way: full-size logits, its formula, scikit-learn; per image, and all pixels in float16."""
    dataset = open_dataset(DataConfig(dataset="street_hazards", root=str(root)), "test")
    predictor = Predictor(model or tiny_segformer(dataset.classes.names), torch.device("cpu"), VIEW)
    from segformer_spark.data.loader import eval_loader

    found, scores, truths = [], [], []
    for item, logits in predictor.logits(eval_loader(dataset, range(4), EvalLoading(VIEW, 1, 0))):
        full = torch.nn.functional.interpolate(logits[None], size=item.size, mode="bilinear")[0]
        score = score_of(full).numpy().ravel()
        truth = (cv2.imread(str(dataset.files(item.index)[1]), cv2.IMREAD_GRAYSCALE) == 14).ravel()
        scores.append(score)
        truths.append(truth)
        if truth.any():
            fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
            found.append((roc_auc_score(truth, score), average_precision_score(truth, score), fpr[tpr >= 0.95].min()))
    whole, truth = np.concatenate(scores).astype(np.float16), np.concatenate(truths)
    pooled = [roc_auc_score(truth, whole), average_precision_score(truth, whole)]
    return {"per_image": [float(value) for value in np.mean(found, 0)], "pooled": pooled}


def test_figures_are_scikit_learns_on_any_number_of_ranks(tmp_path: Path) -> None:
    write_street_set(tmp_path / "set", numbers=(8, 4, 4), size=(48, 80))
    one, two = (
        run_on_ranks(world, evaluated, str(tmp_path / "set"), str(tmp_path / f"out{world}"))[0] for world in (1, 2)
    )
    assert one == two
    rows = {(row["method"], row["protocol"]): row for row in one}
    expected = reference(tmp_path / "set")
    single, pooled = rows["msp", "per_image"], rows["msp", "pooled"]
    assert [single["auroc"], single["aupr"], single["fpr95"]] == pytest.approx(expected["per_image"], abs=2e-4)
    assert [pooled["auroc"], pooled["aupr"]] == pytest.approx(expected["pooled"], abs=1e-4)
    assert (single["n_images"], pooled["n_images"], pooled["n_pixels"]) == (3, 4, 4 * 48 * 80)
    assert list(single) == [
        *("model", "method", "protocol", "auroc", "aupr", "fpr95", "f1_opt", "threshold_opt", "n_images", "n_pixels"),
        *("anomaly_share", "threshold_source"),
    ]
    assert (single["threshold_opt"], single["threshold_source"], pooled["threshold_source"]) == (None, None, "oracle")
    assert len(list((tmp_path / "out1/panels/msp").glob("*.png"))) == 2
    assert (tmp_path / "out1/curves.png").stat().st_size > 5000
    points = list(csv.DictReader((tmp_path / "out2/thresholds.csv").open()))
    assert list(points[0]) == ["method", "threshold", "precision", "recall", "f1", "fpr"]
    own = [point for point in points if point["method"] == "msp"]
    assert max(float(point["f1"]) for point in own) == pooled["f1_opt"]
    assert float(own[-1]["recall"]) == float(own[-1]["fpr"]) == 1
    assert json.loads((tmp_path / "out1/results.json").read_text()) == {"metrics": one, "record": {"split": "test"}}


def test_f1_is_drawn_over_the_threshold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    rng = np.random.default_rng(0)
    rankings = {name: rank(rng.normal(size=50), rng.random(50) < 0.3) for name in ("msp", "energy")}
    figures.draw_curves(rankings, tmp_path / "curves.png")
    panels = {axis.get_title(): axis for axis in drawn[0].axes if axis.get_title() in rankings}
    for name, ranking in rankings.items():
        line = panels[name].get_lines()[0]
        assert (panels[name].get_xlabel(), panels[name].get_ylabel()) == ("threshold", "F1")
        np.testing.assert_array_equal(line.get_xdata(), ranking.thresholds)
        np.testing.assert_array_equal(line.get_ydata(), ranking.f1)


@pytest.mark.parametrize("extreme", [-np.inf, np.inf])
def test_infinite_scores_are_drawn_and_written(extreme: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    ranking = rank(np.where(truth == (extreme > 0), extreme, rng.normal(size=200)), truth)
    results = {"msp": MethodResult(np.empty((0, 3)), ranking, 1)}
    rows = write_results(results, "model", tmp_path, {})
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == rows
    assert (tmp_path / "curves.png").stat().st_size > 5000


def refused(group: Group, root: str, output: str) -> str:
    try:
        evaluated(group, root, output, "val")
    except DataError as error:
        return str(error)
    return ""


def test_a_split_without_anomalies(tmp_path: Path) -> None:
    write_street_set(tmp_path / "set", numbers=(8, 4, 4), size=(48, 80))
    assert (
        "no image of this split has an anomaly"
        in run_on_ranks(1, refused, str(tmp_path / "set"), str(tmp_path / "out"))[0]
    )


def fitted(group: Group, root: str) -> list[list[float]]:
    dataset = open_dataset(DataConfig(dataset="street_hazards", root=root), "train")
    model = tiny_segformer(dataset.classes.names)
    settings = InferenceSettings(batch_size=1)
    session = session_of(model, Subset(dataset, range(2)), group, settings=settings, resize="native")
    found = fit_features(session, 500)
    return [value.flatten().tolist() for value in (found.means, found.log_priors, found.centers, found.scales)]


def test_features_are_fitted_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Three ranks for two images: one has nothing to add."""
    write_street_set(tmp_path / "set", numbers=(4, 2, 2), size=(48, 80))
    one, *others = (run_on_ranks(world, fitted, str(tmp_path / "set"))[0] for world in (1, 2, 3))
    for other in others:
        for left, right in zip(one, other, strict=True):
            assert left == pytest.approx(right, rel=1e-6, abs=1e-9)


def test_fit_and_eval_of_a_run(tmp_path: Path, spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_street_set(tmp_path / "set", numbers=(8, 4, 4), size=(48, 80))
    run = tmp_path / "run"
    settings = (
        "data.dataset=street_hazards",
        "inference.resize=native",
        "training.epochs=1",
        "training.selection_metric=miou",
    )
    run_on_ranks(1, short_run, str(tmp_path / "set"), str(run), settings)
    for arguments in (
        ["anomaly", "fit", str(run / "best")],  # the statistics go into the run, not into the model's folder
        ["anomaly", "eval", str(run), "--methods", "max_logit", *METHODS, "--panels", "1"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert not (run / "best" / "anomaly").exists()
    with pytest.raises(SystemExit) as ended:
        other = ["--set", "data.dataset=spark", "--set", f"data.root={spark_root}", "--split", "val"]
        main(["anomaly", "eval", str(run), *other])
    assert ended.value.code == 2
    assert "knows the classes unlabeled" in capsys.readouterr().err
    assert printed.count("AUROC") == 2 * 5
    rows = list(csv.DictReader((run / "anomaly/test/metrics.csv").open()))
    record = json.loads((run / "anomaly/test/results.json").read_text())["record"]
    assert (record["split"], record["temperature"], record["precision"]) == ("test", 1.0, "fp32")
    assert record["inference"]["resize"] == "native"
    assert record["hardware"]["device"] == "cpu"
    assert {row["method"] for row in rows} == {"max_logit", *METHODS}
    expected = reference(tmp_path / "set", load_model(run / "best")[0], lambda logits: -logits.amax(0))
    (single,) = (row for row in rows if (row["method"], row["protocol"]) == ("max_logit", "per_image"))
    assert float(single["auroc"]) == pytest.approx(expected["per_image"][0], abs=2e-4)


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open() as stream:
        return list(csv.DictReader(stream))


def test_several_runs_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Thresholds are fitted on one town and judged on the other; a false-positive rate on val."""
    monkeypatch.chdir(tmp_path)
    write_street_set(tmp_path / "set", numbers=(8, 4, 8), size=(48, 80))
    settings = ("data.dataset=street_hazards", "inference.resize=native", "training.selection_metric=miou")
    for name in ("one", "two"):
        extra = ("training.max_steps=1", "training.scheduler.warmup_epochs=0", f"experiment.seed={len(name)}")
        run_on_ranks(1, short_run, str(tmp_path / "set"), str(tmp_path / name), (*settings, *extra))
    with pytest.raises(SystemExit) as ended:
        main(["anomaly", "eval", "one", "two", "--methods", "msp", "energy", "--panels", "0", "--fpr-split", "val"])
    assert ended.value.code == 0
    rows = table("anomaly/anomaly.csv")
    assert [(row["model"], row["method"], row["protocol"]) for row in rows] == [
        (model, method, protocol)
        for model in ("one", "two")
        for method in ("msp", "energy")
        for protocol in ("per_image", "pooled")
    ]
    own = {(row["method"], row["protocol"]): row["auroc"] for row in table("two/anomaly/test/metrics.csv")}
    assert {(row["method"], row["protocol"]): row["auroc"] for row in rows if row["model"] == "two"} == own
    picture = cv2.imread("anomaly/anomaly.png")
    assert picture is not None
    assert picture.std() > 5
    points = table("one/anomaly/test/operating_points.csv")
    assert [(point["method"], point["target"]) for point in points[:3]] == [
        ("msp", "recall >= 0.95"),
        ("msp", "false-positive rate <= 0.05"),
        ("msp", "best F1"),
    ]
    assert points[1]["fitted_on"] == "val"
    assert {points[0]["fitted_on"], points[0]["judged_on"]} == {"t1", "t2"}
    for arguments, message in (
        ([], "give runs, or a study with --study"),
        (["one", "two", "one"], "two of the models have one name"),
        (["one", "one/best"], "two of the models have one name"),
        (["one", "--methods", "msp", "--fpr-split", "test"], "this split has anomalies, which would count as normal"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["anomaly", "eval", *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
