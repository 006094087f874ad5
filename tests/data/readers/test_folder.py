from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.config.schema import DataConfig, FolderConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.readers.folder import FolderDataset
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import ConfigError, DataError

YAML = """
data:
  dataset: folder
  root: {root}
  folder:
    masks: {masks}
    background: nothing
    ignore_id: 99
    classes:
    - {{name: nothing, color: [0, 0, 0], id: 4}}
    - {{name: green, color: [0, 255, 0], id: 7}}
    - {{name: red, color: [255, 0, 0], id: 0}}
"""
IDS = np.array([4, 7, 0, 99], np.uint8)
COLORS = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)


def config(root: Path, masks: str) -> DataConfig:
    path = root / "experiment.yaml"
    path.write_text(YAML.format(root=root, masks=masks))
    return load_config(path).config.data


def classes_of(index: int, *, ignored: bool = False) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 4 if ignored else 3, (20, 30)).astype(np.uint8)


def write(root: Path, masks: str, *, mode: str = "L") -> None:
    for index, name in enumerate(["a/one", "a/two", "b c/one"]):
        image, mask = root / "images/train" / f"{name}.jpg", root / "masks/train" / f"{name}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.full((20, 30, 3), 40 * index, np.uint8))
        ids = classes_of(index, ignored=masks == "index")
        if masks == "color":
            cv2.imwrite(str(mask), COLORS[ids][..., ::-1])
        elif mode == "P":
            picture = PIL.Image.fromarray(IDS[ids], mode="P")
            picture.putpalette([(37 * i) % 256 for i in range(768)])
            picture.save(mask)
        else:
            PIL.Image.fromarray(IDS[ids]).save(mask)
    (root / "images/train/a/._one.jpg").write_bytes(b"AppleDouble")
    (root / "images/train/notes.txt").write_text("not an image")


def open_train(root: Path, masks: str) -> SegmentationDataset:
    return open_dataset(config(root, masks), "train")


def test_colour_masks(tmp_path: Path) -> None:
    write(tmp_path, "color")
    dataset = open_train(tmp_path, "color")
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["a__one", "a__two", "b%20c__one"]
    assert dataset.classes.names == ("nothing", "green", "red")
    assert dataset.classes.background == 0
    for index in range(3):
        np.testing.assert_array_equal(dataset.load(index).mask, classes_of(index))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_index_masks_go_through_the_table_of_ids(tmp_path: Path, mode: str) -> None:
    """OpenCV would decode the colours of a P image."""
    write(tmp_path, "index", mode=mode)
    dataset = open_dataset(config(tmp_path, "index").model_copy(update={"palette_masks": "index"}), "train")
    for index in range(3):
        truth = classes_of(index, ignored=True)
        np.testing.assert_array_equal(dataset.load(index).mask, np.where(truth == 3, IGNORE_INDEX, truth))


def test_label_out_of_range_names_file_and_label(tmp_path: Path) -> None:
    write(tmp_path, "index")
    path = tmp_path / "masks/train/a/two.png"
    PIL.Image.fromarray(np.full((20, 30), 5, np.uint8)).save(path)
    with pytest.raises(DataError, match=r"a/two\.png: label 5 at x 0, y 0 .* labels known: 0, 4, 7, 99"):
        open_train(tmp_path, "index").load(1)


def test_colour_image_as_index_mask(tmp_path: Path) -> None:
    write(tmp_path, "color")
    with pytest.raises(DataError, match="the mask is a RGB image; class numbers need one channel"):
        open_train(tmp_path, "index").load(0)


def test_files_without_partner(tmp_path: Path) -> None:
    write(tmp_path, "color")
    (tmp_path / "masks/train/a/two.png").unlink()
    cv2.imwrite(str(tmp_path / "masks/train/alone.png"), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"no partner of the same name for .*two\.jpg, .*alone\.png"):
        open_train(tmp_path, "color")
    dataset = open_dataset(config(tmp_path, "color"), "train", check_files=False)
    assert len(dataset) == 4


def test_two_images_of_one_name(tmp_path: Path) -> None:
    write(tmp_path, "color")
    cv2.imwrite(str(tmp_path / "images/train/a/one.png"), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match="have the same name"):
        open_train(tmp_path, "color")


def test_class_table_is_needed_and_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a class table"):
        open_dataset(DataConfig(dataset="folder", root=str(tmp_path)), "train")
    (tmp_path / "c.yaml").write_text(
        "data: {folder: {classes: [{name: a, color: [0, 0, 0]}, {name: a, color: [1, 0, 0]}]}}"
    )
    with pytest.raises(ConfigError, match="the class table repeats names"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("data: {folder: {classes: [{name: a, color: [0, 0, 300]}]}}")
    with pytest.raises(ConfigError, match="each from 0 to 255"):
        load_config(tmp_path / "c.yaml")


def test_no_such_split(tmp_path: Path) -> None:
    write(tmp_path, "color")
    with pytest.raises(ConfigError, match="images/val: there is no such folder.*masks/val: there is no such folder"):
        open_dataset(config(tmp_path, "color"), "val")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "{ignore_id: 0, masks: index, classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [9, 0, 0]}]}",
            "ignore_id 0",
        ),
        ("{classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [9, 0, 0], id: 0}]}", "the class table repeats ids"),
        (
            "{ignore_color: [9, 0, 0], classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [9, 0, 0]}]}",
            "repeats colours",
        ),
    ],
)
def test_labels_that_would_collide(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {{folder: {table}}}")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_ignored_colour_and_foreign_colours_near_a_class(tmp_path: Path) -> None:
    """Black is 90 away from (64, 64, 0): with SPARK's tolerance it would become that class."""
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[:10] = (192, 192, 128)
    image_path, mask_path = tmp_path / "images/train/x.png", tmp_path / "masks/train/x.png"
    for path, pixels in ((image_path, mask), (mask_path, mask[..., ::-1])):
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), pixels)
    rows = [{"name": "pole", "color": (192, 192, 128)}, {"name": "person", "color": (64, 64, 0)}]
    table = FolderConfig.model_validate({"classes": rows})
    with pytest.raises(DataError, match="resemble no class colour"):
        FolderDataset(tmp_path, "train", table).load(0)
    table = FolderConfig.model_validate({"classes": rows, "ignore_color": (0, 0, 0)})
    ids = FolderDataset(tmp_path, "train", table).load(0).mask
    assert (ids[:10] == 0).all()
    assert (ids[10:] == IGNORE_INDEX).all()


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", "color")
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind / "train").mkdir(parents=True)
        (tmp_path / "set" / kind / "train" / "linked").symlink_to(tmp_path / "real" / kind / "train")
    assert len(open_train(tmp_path / "set", "color")) == 3


def test_class_numbers_need_no_colours(tmp_path: Path) -> None:
    write(tmp_path, "index")
    path = tmp_path / "experiment.yaml"
    rows = "[{name: nothing, id: 4}, {name: green, id: 7}, {name: red, id: 0, color: [255, 0, 0]}]"
    path.write_text(
        f"data: {{dataset: folder, root: {tmp_path}, folder: {{masks: index, ignore_id: 99, background: nothing, "
        f"classes: {rows}}}}}\n"
    )
    dataset = open_dataset(load_config(path).config.data, "train")
    assert len(set(dataset.classes.colors)) == 3
    assert dataset.classes.colors[2] == (255, 0, 0)
    mask, expected = dataset.load(0).mask, classes_of(0, ignored=True)
    np.testing.assert_array_equal(mask[mask < IGNORE_INDEX], expected[expected < 3])


def flat(tmp_path: Path, number: int) -> DataConfig:
    for index in range(number):
        cv2.imwrite(str(tmp_path / f"{index:02d}.jpg"), np.zeros((8, 8, 3), np.uint8))
        cv2.imwrite(str(tmp_path / f"{index:02d}_mask.png"), np.full((8, 8), index % 2, np.uint8))
    table = FolderConfig.model_validate(
        {"masks": "index", "val_fraction": 0.25, "classes": [{"name": "a"}, {"name": "b"}]}
    )
    return DataConfig(dataset="folder", root=str(tmp_path), folder=table)


def test_a_flat_folder_is_cut_into_train_and_val(tmp_path: Path) -> None:
    data = flat(tmp_path, 12)
    names = {
        split: [open_dataset(data, split).sample_id(i) for i in range(len(open_dataset(data, split)))]
        for split in ("train", "val")
    }
    assert len(names["val"]) == 3
    assert sorted(names["train"] + names["val"]) == [f"{index:02d}" for index in range(12)]
    flat(tmp_path, 13)
    again = open_dataset(data, "val")
    kept = {again.sample_id(i) for i in range(len(again))}
    assert len(kept & set(names["val"])) >= 2, "another image leaves the order of the others as it is"
    with pytest.raises(DataError, match="there is no test"):
        open_dataset(data, "test")


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    data = DataConfig(dataset="folder", root=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError) as raised:
        open_dataset(data, "train")
    assert "data.folder.classes" in str(raised.value)
    assert "data.root" in str(raised.value)
    assert "data init" in str(raised.value)
    table = FolderConfig.model_validate({"classes": [{"name": "a"}, {"name": "b"}], "lists": str(tmp_path / "lists")})
    with pytest.raises(ConfigError) as raised:
        open_dataset(DataConfig(dataset="folder", root=str(tmp_path), folder=table), "train")
    assert "colour masks need the color of a, b" in str(raised.value)
    assert "data.folder.lists" in str(raised.value)
