from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import jaccard_score, precision_recall_fscore_support
from torchmetrics.classification import MulticlassJaccardIndex

from segformer_spark.errors import ConfigError
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.metrics.names import check_metric, metric_names
from segformer_spark.metrics.report import report, scalar_metrics, selection_value
from segformer_spark.metrics.scores import class_scores, summarize

NAMES = ["background", "body", "panels"]


@given(hnp.arrays(np.uint8, (40,), elements=st.integers(0, 2)), hnp.arrays(np.uint8, (40,), elements=st.integers(0, 2)))
def test_scores_are_those_of_scikit_learn(prediction: np.ndarray, truth: np.ndarray) -> None:
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (truth, prediction), 1)
    scores = class_scores(matrix)
    precision, recall, dice, _ = precision_recall_fscore_support(
        truth, prediction, labels=range(3), zero_division=np.nan
    )
    iou = jaccard_score(truth, prediction, labels=range(3), average=None, zero_division=0)
    for c in range(3):
        present = (truth == c).any() or (prediction == c).any()
        assert np.isnan(scores["iou"][c]) != present
        if present:
            assert scores["iou"][c] == pytest.approx(iou[c])
            assert scores["dice"][c] == pytest.approx(np.nan_to_num(dice[c]))
        np.testing.assert_allclose(scores["precision"][c], precision[c])
        np.testing.assert_allclose(scores["recall"][c], recall[c])


def test_mean_iou_is_that_of_torchmetrics_when_all_classes_occur() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 500))
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (truth, prediction), 1)
    expected = MulticlassJaccardIndex(3)(torch.from_numpy(prediction), torch.from_numpy(truth))
    assert summarize(matrix, NAMES, 0)["miou"] == pytest.approx(float(expected))


def test_absent_and_invented_classes() -> None:
    matrix = np.array([[8, 2, 0], [0, 0, 0], [0, 0, 0]])
    metrics = summarize(matrix, NAMES, 0)
    assert metrics["per_class"]["background"]["iou"] == pytest.approx(0.8)
    assert metrics["per_class"]["body"]["iou"] == 0, "predicted where there is none"
    assert metrics["per_class"]["panels"]["iou"] is None, "neither there nor predicted"
    assert metrics["per_class"]["body"]["recall"] is None
    assert metrics["miou"] == pytest.approx(0.4)
    assert metrics["miou_without_background"] == 0
    assert metrics["pixel_accuracy"] == pytest.approx(0.8)


def test_no_pixels_at_all_is_null_and_not_nan() -> None:
    metrics = summarize(np.zeros((3, 3), np.int64), NAMES, 0)
    assert metrics["miou"] is None
    assert metrics["pixel_accuracy"] is None
    json.dumps(metrics, allow_nan=False)


def test_one_class_alone_has_no_mean_over_classes() -> None:
    """Masks of 0 and 255 under ignore_id 255 hold one class: a mIoU of 1.0 would say that nothing is left to learn."""
    alone = summarize(np.diag([9, 0, 0]), NAMES, 0)
    assert {alone[name] for name in ("miou", "miou_without_background", "mean_dice")} == {None}
    assert alone["per_class"]["background"]["iou"] == 1.0
    wrong = summarize(np.array([[8, 1, 0], [0, 0, 0], [0, 0, 0]]), NAMES, 0)
    assert wrong["miou"] == pytest.approx((8 / 9 + 0) / 2), "a class that is predicted counts"


def test_report_breaks_down_by_category() -> None:
    counts = EvaluationCounts.zeros(3, 3, 3)
    truth = torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8)
    wrong = torch.tensor([[0, 0], [2, 0]], dtype=torch.uint8)
    for index, (group, prediction) in enumerate([(0, truth), (2, wrong), (2, truth)]):
        counts.add(index, group, prediction, truth, 255)
    metrics = report(counts, [0, 2, 2], class_names=NAMES, background=0, categories=["x", "y", "z"])
    assert list(metrics["categories"]) == ["x", "z"]
    assert metrics["categories"]["x"]["miou"] == 1.0
    assert metrics["categories"]["z"]["num_images"] == 2
    assert metrics["categories"]["z"]["per_class"]["body"]["iou"] == pytest.approx(0.5)
    assert metrics["per_class"]["body"]["iou"] == pytest.approx(2 / 3)
    assert metrics["spark_score_body"] == pytest.approx(2 / 3)
    assert np.array(metrics["confusion"]).sum() == 12
    parts = [np.array(group["confusion"]) for group in metrics["categories"].values()]
    np.testing.assert_array_equal(sum(parts), metrics["confusion"])
    json.dumps(metrics, allow_nan=False)


def test_selection() -> None:
    counts = EvaluationCounts.zeros(1, 3, 0)
    truth = torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8)
    counts.add(0, 0, truth, truth, 255)
    metrics = report(counts, [0], class_names=NAMES, background=0, categories=[])
    assert selection_value(metrics, "spark_score") == 1.0
    assert selection_value(metrics, "iou_panels") == 1.0
    assert "confusion" not in scalar_metrics(metrics)
    assert set(metric_names(NAMES)) <= scalar_metrics(metrics).keys()
    assert selection_value({"per_class": {}, "spark_score": None}, "spark_score") is None


def test_unknown_metrics_are_refused_before_training() -> None:
    check_metric("spark_score", NAMES)
    with pytest.raises(ConfigError, match=r"no metric 'mIoU'; did you mean miou\?"):
        check_metric("mIoU", NAMES)
    with pytest.raises(ConfigError, match="no metric 'spark_score'"):
        check_metric("spark_score", ["road", "sky"])


def test_void_may_count_as_false_positives_of_what_is_predicted() -> None:
    confusion = np.array([[8, 2], [1, 9]], np.int64)
    ignored = np.array([4, 0], np.int64)
    metrics = summarize(confusion, ["a", "b"], None, ignored)
    assert metrics["miou"] == pytest.approx((8 / 11 + 9 / 12) / 2)
    assert metrics["miou_void_as_error"] == pytest.approx((8 / 15 + 9 / 12) / 2)
    assert metrics["pixel_accuracy"] == pytest.approx(17 / 20), "all else leaves void out"
    assert "miou_void_as_error" not in summarize(confusion, ["a", "b"], None, np.zeros(2, np.int64))


def test_void_against_counting_pixels() -> None:
    rng = np.random.default_rng(1)
    truth, prediction = rng.choice([0, 1, 2, 255], (9, 9)), rng.integers(0, 3, (9, 9))
    counts = EvaluationCounts.zeros(1, 3, 0)
    counts.add(0, 0, torch.from_numpy(prediction).byte(), torch.from_numpy(truth).byte(), 255)
    metrics = report(counts, [0], class_names=["a", "b", "c"], background=None, categories=[])
    ious = [((truth == c) & (prediction == c)).sum() / ((truth == c) | (prediction == c)).sum() for c in range(3)]
    assert metrics["miou_void_as_error"] == pytest.approx(np.mean(ious))
