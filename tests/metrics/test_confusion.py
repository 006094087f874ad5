from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix as sklearn_confusion

from segformer_spark.metrics.confusion import OVERLAP, PREDICTED, TRUTH, EvaluationCounts, confusion_matrix
from tests.ranks import Group, run_on_ranks

IGNORE = 255
ids = hnp.arrays(np.uint8, (6, 5), elements=st.integers(0, 3))
labels = hnp.arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))


@given(ids, labels)
def test_counts_are_those_of_scikit_learn(prediction: np.ndarray, truth: np.ndarray) -> None:
    ours = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), 4, IGNORE)
    valid = truth != IGNORE
    expected = np.zeros((4, 4), int)
    if valid.any():
        expected = sklearn_confusion(truth[valid], prediction[valid], labels=range(4))
    np.testing.assert_array_equal(ours.numpy(), expected)
    assert ours.dtype == torch.int64


def test_many_classes_do_not_overflow_bytes() -> None:
    prediction, truth = torch.full((3, 3), 149, dtype=torch.uint8), torch.full((3, 3), 148, dtype=torch.uint8)
    matrix = confusion_matrix(prediction, truth, 150, IGNORE)
    assert matrix[148, 149] == 9
    assert matrix.sum() == 9


def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, (7, 8, 8)).astype(np.uint8), rng.choice([0, 1, 2, IGNORE], (7, 8, 8)).astype(np.uint8)


def counted(group: Group) -> dict[str, Any]:
    prediction, truth = pictures()
    counts = EvaluationCounts.zeros(7, 3, 2)
    for index in range(group.rank, 7, group.world_size):
        counts.add(index, index % 2, torch.from_numpy(prediction[index]), torch.from_numpy(truth[index]), IGNORE)
    total = counts.reduce(group.sum)
    return {"confusion": total.confusion.numpy(), "per_image": total.per_image.numpy()}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_division_gives_the_same_integers(world: int) -> None:
    prediction, truth = pictures()
    for result in run_on_ranks(world, counted):
        for group in range(2):
            p, t = prediction[group::2], truth[group::2]
            np.testing.assert_array_equal(
                result["confusion"][group], sklearn_confusion(t[t != IGNORE], p[t != IGNORE], labels=range(3))
            )
        for image in range(7):
            p, t = prediction[image][truth[image] != IGNORE], truth[image][truth[image] != IGNORE]
            for c in range(3):
                row = result["per_image"][image, c]
                assert row[PREDICTED] == (p == c).sum()
                assert row[TRUTH] == (t == c).sum()
                assert row[OVERLAP] == ((p == c) & (t == c)).sum()


@pytest.mark.parametrize("seen", [[0, 0], [1]])
def test_an_image_counted_twice_or_never_is_our_mistake(seen: list[int]) -> None:
    counts = EvaluationCounts.zeros(2, 3, 0)
    blank = torch.zeros(2, 2, dtype=torch.uint8)
    for index in seen:
        counts.add(index, 0, blank, blank, IGNORE)
    with pytest.raises(AssertionError, match="exactly one rank"):
        counts.reduce(lambda value: value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("classes", [3, 15, 16, 150])
@pytest.mark.parametrize("foreign", [0, 1, 4])
def test_a_label_that_is_no_class_is_refused(dtype: torch.dtype, classes: int, foreign: int) -> None:
    truth = torch.tensor([0, 1, IGNORE, classes + foreign]).to(dtype)
    with pytest.raises(ValueError, match=f"^label {classes + foreign} is no class: there are {classes} classes"):
        confusion_matrix(torch.zeros(4, dtype=dtype), truth, classes, IGNORE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("classes", [3, 15, 16, 150])
@pytest.mark.parametrize("truth", [0, 2, IGNORE])
def test_a_prediction_that_is_no_class_is_refused(dtype: torch.dtype, classes: int, truth: int) -> None:
    for foreign in (classes, 255):
        prediction = torch.tensor([0, foreign, 1]).to(dtype)
        with pytest.raises(ValueError, match=f"^predicted id {foreign} is no class"):
            confusion_matrix(prediction, torch.full((3,), truth).to(dtype), classes, IGNORE)


def test_negative_ids_are_refused() -> None:
    ids, blank = torch.tensor([0, -1]), torch.zeros(2, dtype=torch.int64)
    for prediction, truth in ((ids, blank), (blank, ids)):
        with pytest.raises(ValueError, match="-1 is no class"):
            confusion_matrix(prediction, truth, 3, IGNORE)


@given(ids, labels, st.sampled_from([torch.int16, torch.int64]))
def test_bytes_and_other_integers_count_alike(prediction: np.ndarray, truth: np.ndarray, dtype: torch.dtype) -> None:
    tensors = torch.from_numpy(prediction), torch.from_numpy(truth)
    wide = (tensor.to(dtype) for tensor in tensors)
    assert torch.equal(confusion_matrix(*tensors, 4, IGNORE), confusion_matrix(*wide, 4, IGNORE))
