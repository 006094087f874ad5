"""Classes that stand for sides: a flipped image shows the other one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segformer_spark.config.load import load_config
from segformer_spark.config.schema import AugmentationConfig
from segformer_spark.data.dataset import IGNORE_INDEX, Sample
from segformer_spark.data.flip_pairs import flipped_ids, sided_names
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalItem
from segformer_spark.data.readers.ade20k import ADE20K_CLASSES
from segformer_spark.data.readers.camvid import CAMVID_CLASSES
from segformer_spark.data.readers.cityscapes import CITYSCAPES_CLASSES
from segformer_spark.data.readers.spark import SPARK_CLASSES, SparkDataset
from segformer_spark.data.readers.voc import VOC_CLASSES
from segformer_spark.data.transforms import NativeSample, TrainTransform
from segformer_spark.errors import ConfigError
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.training.plan import check_dataset
from tests.sessions import group_of_one, session_of
from tests.tiny import tiny_segformer

OFF = {"horizontal_flip": 0.0, "vertical_flip": 0.0, "affine": 0.0, "color": 0.0, "blur": 0.0}
SIDED = ("background", "left", "right")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["left hand", "right hand", "body"], [("left hand", "right hand")]),
        (["ArmRight", "ArmLeft"], [("ArmRight", "ArmLeft")]),
        (["arm_l", "arm_r", "L-leg", "R-leg"], [("arm_l", "arm_r"), ("L-leg", "R-leg")]),
        (["left", "top", "bottom"], []),
        (["light", "sign"], []),
        (["larm", "rarm", "armL", "armR"], [("larm", "rarm"), ("armL", "armR")]),
        (["grass", "glass", "towel", "tower", "cat", "car"], []),
    ],
)
def test_names_that_imply_sides(names: list[str], expected: list[tuple[str, str]]) -> None:
    assert sided_names(names) == expected


def test_no_known_data_set_has_sides() -> None:
    for classes in (SPARK_CLASSES, CAMVID_CLASSES, VOC_CLASSES, CITYSCAPES_CLASSES, ADE20K_CLASSES):
        assert sided_names(classes.names) == []


def test_ids_are_exchanged() -> None:
    assert flipped_ids(SIDED, [("left", "right")]) == [0, 2, 1]
    assert flipped_ids(SIDED, []) == [0, 1, 2]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("left", "west")], "'west' is no class"),
        ([("left", "left")], "one other"),
        ([("left", "right")] * 2, "one oth"),
    ],
)
def test_impossible_pairs(pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flipped_ids(SIDED, pairs)


def squares() -> Sample:
    """Class 1 on the left, class 2 on the right, both as bright; a row without a label."""
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 5:25], mask[20:40, 40:60], mask[60:] = 1, 2, IGNORE_INDEX
    return Sample(np.where(mask[..., None] % 255 > 0, 200, 20).repeat(3, -1).astype(np.uint8), mask)


@pytest.mark.parametrize(("axis", "setting"), [(1, "horizontal_flip"), (0, "vertical_flip")])
def test_augmentation_exchanges_labels_in_left_right_flips(axis: int, setting: str) -> None:
    config = AugmentationConfig(**{**OFF, setting: 1.0})  # type: ignore[arg-type]
    found = TrainTransform((64, 64), config, 0, flipped_ids(SIDED, [("left", "right")]))(
        [NativeSample(squares(), None, "x")], 0, 0
    )
    turned = np.flip(squares().mask, axis)
    expected = np.choose(turned % 255, [0, 2, 1]) if axis == 1 else turned % 255
    np.testing.assert_array_equal(found.mask, np.where(turned == IGNORE_INDEX, IGNORE_INDEX, expected))
    np.testing.assert_array_equal(found.image, np.flip(squares().image, axis))


class Perfect(nn.Module):
    """Class 1 where the left half is bright, class 2 where the right half is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean(1) * 10
        left = torch.arange(images.shape[-1]) < images.shape[-1] // 2
        return torch.stack([torch.zeros_like(bright), bright.where(left, -50.0), bright.where(~left, -50.0)], 1)


@pytest.mark.parametrize("tta", ["none", "hflip", "flips"])
def test_a_perfect_model_stays_perfect_under_test_time_augmentation(tta: str) -> None:
    sample = squares()
    item = EvalItem(0, torch.from_numpy(sample.image).permute(2, 0, 1), (64, 64), None)
    flipped = tuple(flipped_ids(SIDED, [("left", "right")]))
    model: nn.Module = Perfect()
    predictor = Predictor(model, torch.device("cpu"), InferenceView((64, 64)), tta=tta, flipped=flipped)  # type: ignore[arg-type]
    ((_, ids),) = predictor.predict([[item]])
    np.testing.assert_array_equal(ids.numpy()[:60], sample.mask[:60])
    ((_, probabilities),) = predictor.probabilities([[item]])
    np.testing.assert_array_equal(probabilities.argmax(0).numpy()[:60], sample.mask[:60])


def sided_set(root: Path) -> SparkDataset:
    """A rendered set whose classes are called left and right."""
    from dataclasses import replace

    dataset = SparkDataset(root, "val")
    dataset.classes = replace(SPARK_CLASSES, names=SIDED)
    return dataset


def test_training_asks_before_it_starts(spark_root: Path) -> None:
    dataset, metric = sided_set(spark_root), "training.selection_metric=miou"
    for setting in ("data.flip_pairs=[[left, right]]", "data.flip_pairs=[]", "augmentation.horizontal_flip=0"):
        check_dataset(load_config(overrides=[metric, setting]).config, dataset, dataset)
    with pytest.raises(ConfigError, match=r"left and right for each other\. Set data\.flip_pairs: \[\[left, right\]\]"):
        check_dataset(load_config(overrides=[metric]).config, dataset, dataset)


def test_inference_asks_before_it_averages(spark_root: Path) -> None:
    model = tiny_segformer(SIDED)
    with group_of_one() as group:
        session_of(model, sided_set(spark_root), group)
        with pytest.raises(ConfigError, match="--tta hflip would take the classes left and right for each other"):
            session_of(model, sided_set(spark_root), group, settings=InferenceSettings(tta="hflip"))
