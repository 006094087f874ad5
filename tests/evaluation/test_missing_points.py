"""Planted faults of each kind move their own part, and no other."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from segformer_spark.evaluation.missing_points import Shown, coarse_truth, parts_of
from segformer_spark.metrics.headline import Headline
from segformer_spark.metrics.image_counts import ImageCounts, count_image, join_counts
from segformer_spark.metrics.parts import DECISION, PARTS, missing_points

NAMES, SIDE = ("a", "b", "c"), 256
Planted = tuple[np.ndarray, np.ndarray, np.ndarray]


def scene(index: int) -> np.ndarray:
    """Two large objects, the second of two parts."""
    rng = np.random.default_rng(index)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    center = tuple(int(v) for v in rng.integers(60, 80, 2))
    cv2.ellipse(mask, center, (45, 34), int(rng.integers(0, 90)), 0, 360, 1, -1)
    row, column = rng.integers(140, 150, 2)
    mask[row : row + 90, column : column + 80] = 1
    mask[row + 24 : row + 64, column + 22 : column + 60] = 2
    return mask


def rows(parts: np.ndarray, truth: np.ndarray, ids: np.ndarray) -> np.ndarray:
    keys, pixels = np.unique((parts.astype(np.int64) * 3 + truth) * 3 + ids, return_counts=True)
    rest, prediction = np.divmod(keys, 3)
    return np.stack([*np.divmod(rest, 3), prediction, pixels], -1)


def counted(planted: list[Planted], shown: Shown | None, others: list[np.ndarray] | None = None) -> ImageCounts:
    out = []
    for index, (ids, truth, confidence) in enumerate(planted):
        other = ids if others is None else others[index]
        found = rows(parts_of(other, truth, 3, 0, confidence, shown), truth, other)
        given = (torch.from_numpy(ids), torch.from_numpy(truth), 3, 255, torch.from_numpy(confidence))
        out.append(count_image(index, *given, alternative=found))
    return join_counts(out)


def split(counts: ImageCounts) -> dict[str, float]:
    images = [str(index) for index in range(len(counts))]
    found = missing_points(counts.cells, counts.alternative, len(counts), NAMES, images)
    assert found is not None
    assert sum(found["parts"].values()) == pytest.approx(found["missing"], abs=1e-12)
    score = Headline(counts.evaluation_counts([0] * len(counts), 0).per_image.numpy(), NAMES).value("miou")
    assert found["score"] == score
    assert found["missing"] == pytest.approx(1 - (score or 0), abs=1e-12)
    parts: dict[str, float] = found["parts"]
    return parts


def sure(truth: np.ndarray, value: float = 0.7) -> np.ndarray:
    return np.full(truth.shape, value, np.float32)


def coarse(side: int) -> Callable[[np.ndarray], Planted]:
    return lambda truth: (coarse_truth(truth, (side, side), 3), truth, sure(truth))


def wrong_label(truth: np.ndarray) -> Planted:
    labelled = truth.copy()
    labelled[10:30, 200:240] = 2
    return truth, labelled, sure(truth, 0.99)


def missed(truth: np.ndarray) -> Planted:
    _, objects = cv2.connectedComponents((truth > 0).astype(np.uint8))
    return np.where(objects == objects[70, 70], 0, truth).astype(np.uint8), truth, sure(truth)


def eroded(truth: np.ndarray) -> Planted:
    inner = cv2.erode((truth > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    return np.where(inner > 0, truth, 0).astype(np.uint8), truth, sure(truth)


def swapped(truth: np.ndarray) -> Planted:
    ids = truth.copy()
    inner = cv2.erode((truth == 2).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    ids[inner & (np.arange(SIDE) % 2 == 0)] = 1
    return ids, truth, sure(truth)


def too_small(truth: np.ndarray) -> Planted:
    """Beyond the border: a bite out of the middle of the body."""
    ids = truth.copy()
    inner = cv2.erode((truth == 1).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    inner[:, 80:] = False
    ids[inner] = 0
    return ids, truth, sure(truth)


FAULTS: dict[str, tuple[Callable[[np.ndarray], Planted], Shown | None]] = {
    PARTS[0]: (coarse(56), Shown((56, 56), (256, 256))),
    PARTS[1]: (coarse(32), Shown((256, 256), (32, 32))),
    PARTS[2]: (wrong_label, Shown((256, 256), (64, 64))),
    PARTS[3]: (missed, Shown((256, 256), (64, 64))),
    PARTS[4]: (eroded, Shown((256, 256), (64, 64))),
    PARTS[5]: (swapped, Shown((256, 256), (64, 64))),
    PARTS[6]: (too_small, Shown((256, 256), (64, 64))),
}


@pytest.mark.parametrize("part", FAULTS)
def test_a_planted_fault_moves_its_own_part(part: str) -> None:
    plant, shown = FAULTS[part]
    planted = [plant(scene(index)) for index in range(8)]
    found = split(counted(planted, shown))
    total = sum(found.values())
    assert total > 0.004, "the fault is worth something"
    assert found[part] == pytest.approx(total, rel=0.05)
    for other, points in found.items():
        if other != part:
            assert abs(points) < 0.1 * found[part], other


def test_the_decision_rule_gains_and_loses() -> None:
    planted = [eroded(scene(index)) for index in range(4)]
    truths = [truth for _, truth, _ in planted]
    gained = split(counted(planted, None, truths))
    assert gained[DECISION] == pytest.approx(sum(gained.values()), abs=1e-12)
    perfect = [(truth, truth, confidence) for _, truth, confidence in planted]
    lost = split(counted(perfect, None, [ids for ids, _, _ in planted]))
    assert lost[DECISION] == pytest.approx(-gained[DECISION], abs=1e-12)
    assert lost[PARTS[4]] == pytest.approx(gained[DECISION], rel=0.05)


def test_suspected_labels_are_listed() -> None:
    planted = [wrong_label(scene(0)), (scene(1), scene(1), sure(scene(1), 0.99))]
    counts = counted(planted, None)
    found = missing_points(counts.cells, counts.alternative, 2, NAMES, ["first", "second"])
    assert found is not None
    assert found["suspected_labels"] == [{"image": "first", "pixels": 800}]


def test_every_wrong_pixel_has_a_part_and_no_other() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (64, 48)):
        truth = rng.integers(0, 3, shape).astype(np.uint8)
        truth[rng.random(shape) < 0.1] = 255
        ids = rng.integers(0, 3, shape).astype(np.uint8)
        for background in (0, None):
            parts = parts_of(ids, truth, 3, background, sure(truth), Shown((3, 3), (1, 1)))
            assert np.array_equal(parts > 0, (ids != truth) & (truth != 255))
            assert parts.max(initial=0) <= len(PARTS)
