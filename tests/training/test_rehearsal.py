from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import UserError
from segformer_spark.training import rehearsal
from segformer_spark.training.rehearsal import largest_image, rehearse
from tests.ranks import Group, run_on_ranks
from tests.sessions import group_of_one


def larger(root: Path, number: int, side: int) -> None:
    """Replace an image of the validation split by one of another size."""
    image = sorted(root.rglob("val/*_img.jpg"))[number]
    cv2.imwrite(str(image), np.zeros((side, side, 3), np.uint8))


def find(group: Group, root: str) -> tuple[int, list[int]]:
    dataset = open_dataset(load_config(overrides=[f"data.root={root}"]).config.data, "val")
    sizes = [int(np.prod(cv2.imread(str(dataset.files(index)[0])).shape[:2])) for index in range(len(dataset))]
    return largest_image(dataset, group), sizes


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_largest_image_is_found_on_all_ranks(world_size: int, own_spark_root: Path) -> None:
    larger(own_spark_root, 5, 300)
    found = run_on_ranks(world_size, find, str(own_spark_root))
    assert {index for index, _ in found} == {int(np.argmax(found[0][1]))}
    assert max(found[0][1]) == 300 * 300


def test_of_a_large_set_some_are_looked_at(spark_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_MOST_HEADERS", 3)
    seen: list[Path] = []
    real = rehearsal.read_header

    def read(path: Path) -> Any:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(rehearsal, "read_header", read)
    with group_of_one() as group:
        index, sizes = find(group, str(spark_root))
    assert len(seen) == 3
    assert 0 <= index < len(sizes)


class Full:
    """In the place of a predictor whose GPU has no memory left."""

    def predict_with_loss(self, batches: Iterator[Any], loss: Any) -> Iterator[Any]:
        for batch in batches:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(batch)} images")
            yield


def test_what_does_not_fit_is_said_with_what_to_do(spark_root: Path) -> None:
    from segformer_spark.data.inference_view import InferenceView
    from segformer_spark.data.loader import EvalLoading

    config = load_config(overrides=[f"data.root={spark_root}", "data.image_size=64"]).config
    loading = EvalLoading(InferenceView(config.data.input_size, config.inference), 5, 0)
    full: Any = Full()
    with group_of_one() as group, pytest.raises(UserError) as caught:
        rehearse(full, open_dataset(config.data, "val"), loading, group, lambda logits, labels: logits.sum())
    assert "the GPU's memory is full in validation" in str(caught.value)
    assert "5 images" in str(caught.value)
    assert "Lower training.validation.batch_size" in str(caught.value)
