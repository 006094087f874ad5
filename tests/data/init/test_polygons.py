"""Polygons of three formats against pycocotools' own areas and hand-made ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segformer_spark.config.load import load_config
from segformer_spark.data.init.project import FolderSummary, InitOptions, init_project
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from tests.data.own_folder import SIZE, ellipse, save

SQUARE = [8.0, 8.0, 24.0, 8.0, 24.0, 24.0, 8.0, 24.0]
BIG = [0.0, 0.0, 40.0, 0.0, 40.0, 40.0, 0.0, 40.0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photos(number: int = 3, folder: str = "photos") -> Path:
    for index in range(number):
        save(ellipse(index)[0], Path(folder) / f"{index}.jpg")
    return Path(folder)


def begin(folder: Path, **options: Any) -> FolderSummary:
    return init_project(InitOptions(folder=folder, name="shapes", **options))


def mask_of(name: str) -> np.ndarray[Any, Any]:
    data = load_config("shapes.yaml").config.data
    for split in ("train", "val"):
        dataset = open_dataset(data, split)
        for index in range(len(dataset)):
            if dataset.files(index)[0].name == name:
                return dataset.load(index).mask
    raise AssertionError(name)


def coco(folder: Path, annotations: list[dict[str, Any]], number: int = 3) -> Path:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(number)]
    categories = [{"id": 7, "name": "stem"}, {"id": 3, "name": "leaf"}, {"id": 9, "name": "never"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_coco_polygons_and_run_lengths() -> None:
    folder = photos()
    area = np.zeros(SIZE, np.uint8)
    area[30:, 50:] = 1
    encoded = coco_mask.encode(np.asfortranarray(area))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], area.ravel(order="F"), [2]])))
    counts = np.diff(np.concatenate([[0], runs])).tolist()
    coco(
        folder,
        [
            {"image_id": 0, "category_id": 3, "segmentation": [SQUARE]},
            {"image_id": 0, "category_id": 7, "segmentation": [BIG]},
            {"image_id": 1, "category_id": 7, "segmentation": {"size": SIZE, "counts": encoded["counts"].decode()}},
            {"image_id": 2, "category_id": 7, "segmentation": {"size": SIZE, "counts": counts}},
        ],
    )
    summary = begin(folder)
    assert [row.name for row in summary.table.rows] == ["background", "leaf", "stem"]
    expected = np.zeros(SIZE, np.uint8)
    for polygon, label in ((BIG, 2), (SQUARE, 1)):
        encoded = coco_mask.frPyObjects([polygon], *SIZE)
        expected[coco_mask.decode(encoded)[..., 0] > 0] = label
    np.testing.assert_array_equal(mask_of("0.jpg"), expected, "the smaller area lies over the larger one")
    np.testing.assert_array_equal(mask_of("1.jpg"), 2 * area)
    np.testing.assert_array_equal(mask_of("2.jpg"), 2 * area)
    assert sorted(p.name for p in Path("photos").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "instances.json"]


def test_yolo_lines() -> None:
    folder = photos(folder="set/images")
    labels = Path("set/labels")
    labels.mkdir()
    relative = " ".join(str(v / side) for v, side in zip(SQUARE, [SIZE[1], SIZE[0]] * 4, strict=True))
    (labels / "0.txt").write_text(f"1 {relative}\n")
    (labels / "1.txt").write_text(f"0 {relative}\n\n")
    Path("set/data.yaml").write_text("names: [stem, leaf]\nnc: 2\n")
    begin(Path("set"))
    mask = mask_of("0.jpg")
    assert mask[8:24, 8:24].min() == 2
    assert (mask > 0).sum() == 16 * 16
    assert mask_of("2.jpg").max() == 0, "an image without a text file shows nothing"
    assert folder.is_dir()


def test_labelme_shapes() -> None:
    folder = photos()
    points = np.reshape(SQUARE, (-1, 2)).tolist()
    shapes = [
        {"label": "leaf", "points": points, "shape_type": "polygon"},
        {"label": "stem", "points": [[40, 10], [60, 20]], "shape_type": "rectangle"},
        {"label": "stem", "points": [[50, 35], [50, 41]], "shape_type": "circle"},
        {"label": "leaf", "points": [[1, 1]], "shape_type": "point"},
    ]
    for index in range(3):
        content = {"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": f"{index}.jpg"}
        (folder / f"{index}.json").write_text(json.dumps(content))
    begin(folder)
    mask = mask_of("1.jpg")
    assert mask[8:24, 8:24].min() == mask[8:24, 8:24].max() == 1
    assert (mask[10:20, 40:60] == 2).all()
    assert mask[35, 50] == 2
    assert (mask[30:] == 2).sum() == pytest.approx(np.pi * 36, rel=0.1)
    assert mask[1, 1] == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0 0.1 0.1 0.2 0.2", "this line is a box, not a polygon"),
        ("0 0.1 0.1 0.2 0.2 0.3", "three or more x y pairs"),
        ("0 1.1 0.1 0.2 0.2 0.3 0.3", "three or more x y pairs from 0 to 1"),
        ("leaf 0.1 0.1 0.2 0.2 0.3 0.3", "expected a class number"),
        ("5 0.1 0.1 0.2 0.2 0.3 0.3", "there is a class number 5, and names for 2"),
    ],
)
def test_bad_lines_of_yolo(lines: str, message: str) -> None:
    folder = photos()
    (folder / "0.txt").write_text(lines + "\n")
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=message):
        begin(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(file_name="../0.jpg"), "leads out of its folder"),
        (lambda c: c["images"][0].update(file_name="9.jpg"), "there is no file of this name"),
        (lambda c: c["annotations"][0].update(image_id=99), "not both of which are in the file"),
        (lambda c: c["images"][0].pop("height"), "this is not a COCO file: images.0.height"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": [1]}), "an encoding of"),
    ],
)
def test_bad_coco_files(change: Any, message: str) -> None:
    folder = photos()
    path = coco(folder, [{"image_id": 0, "category_id": 3, "segmentation": [SQUARE]}])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        begin(folder)


def test_images_that_no_file_speaks_of_are_named() -> None:
    folder = photos(4)
    coco(folder, [{"image_id": 0, "category_id": 3, "segmentation": [SQUARE]}])
    with pytest.raises(DataError, match=r"1 images without a mask: 3.jpg"):
        begin(folder)
    assert sum(begin(folder, skip_unpaired=True).num_images.values()) == 3
