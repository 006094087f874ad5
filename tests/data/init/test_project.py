"""`data init` on folders as people have them: what it finds, what it writes, and what it asks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.data.init.config_text import batch_and_epochs, fitting_size
from segformer_spark.data.init.project import FolderSummary, InitOptions, init_project
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError, UserError
from tests.data.own_folder import SIZE, color_folder, ellipse, index_folder, ordinary_folder, save

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begin(folder: Path, **options: Any) -> FolderSummary:
    return init_project(InitOptions(folder=folder, name="leaves", **options))


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def class_ids(split: str = "train", config: str = "leaves.yaml") -> list[np.ndarray[Any, Any]]:
    data = load_config(config).config.data
    dataset = open_dataset(data, split)
    return [dataset.load(index).mask for index in range(len(dataset))]


def random_ids(labels: list[int], number: int = 6, dtype: Any = np.uint8) -> list[np.ndarray[Any, Any]]:
    """Masks in which every label takes a band of rows."""
    masks = []
    for index in range(number):
        rows = np.array_split(np.arange(SIZE[0]), len(labels))
        mask = np.zeros(SIZE, dtype)
        for label, own in zip(labels, rows, strict=True):
            mask[own] = label
        masks.append(np.roll(mask, index, axis=0))
    return masks


def test_masks_of_0_and_255_beside_photographs(tmp_path: Path) -> None:
    folder = ordinary_folder(tmp_path / "photos", 10)
    before = digests(folder)
    summary = begin(folder, val_fraction=0.3)
    assert digests(folder) == before
    assert [(row.name, row.label) for row in summary.table.rows] == [("background", 0), ("leaves", 255)]
    assert dict(summary.num_images) == {"train": 7, "val": 3}
    assert summary.table.ignore_id is None
    config = load_config("leaves.yaml").config
    assert config.data.input_size == (64, 64) or config.data.input_size == (32, 64)
    assert set(np.unique(np.concatenate([mask.ravel() for mask in class_ids()]))) == {0, 1}
    dataset = open_dataset(config.data, "val")
    for index in range(len(dataset)):
        number = int(dataset.files(index)[0].stem.removeprefix("IMG "))
        np.testing.assert_array_equal(dataset.load(index).mask, ellipse(number)[1])


def test_every_choice_has_a_reason() -> None:
    folder = ordinary_folder(Path("photos"))
    begin(folder, command="segformer-spark data init photos --name leaves")
    text = Path("leaves.yaml").read_text()
    assert text.startswith("# Made by: segformer-spark data init photos --name leaves\n")
    for key in (
        "image_size",
        "pretrained",
        "epochs",
        "batch_size",
        "class_weights",
        "vertical_flip",
        "exif_orientation",
    ):
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
        assert "#" in line or "#" in text.split(line)[0].splitlines()[-1], line


def test_class_numbers_with_255_as_ignored() -> None:
    folder = index_folder(Path("photos"), random_ids([0, 1, 2, 255]))
    summary = begin(folder)
    assert [row.label for row in summary.table.rows] == [0, 1, 2]
    assert summary.table.ignore_id == 255
    assert summary.ignored == pytest.approx(0.25)
    assert set(np.unique(class_ids()[0])) == {0, 1, 2, 255}


def test_names_of_classes_are_given_in_the_order_of_their_numbers() -> None:
    folder = index_folder(Path("photos"), random_ids([3, 5, 9]))
    summary = begin(folder, class_names=["a", "b", "c"])
    assert [(row.name, row.label) for row in summary.table.rows] == [("a", 3), ("b", 5), ("c", 9)]
    assert summary.table.background is None
    with pytest.raises(UserError, match="--classes: 2 names for 3 classes"):
        begin(folder, class_names=["a", "b"], overwrite=True)


ODD_NAMES = ["a: b", "it's", "#x", "null", "42", 'ü"q"', "- z", "{m}", "true", "~", "1e5", "x\ty", "@q", "a\\b", " "]


@pytest.mark.parametrize("folder", ["my photos (2)#1", "ünï", "null", "12", "a:b", "[q]", "{q}"])
def test_any_name_comes_back_from_the_file(folder: str) -> None:
    root = index_folder(Path(folder), random_ids(list(range(len(ODD_NAMES))), 4))
    begin(root, class_names=ODD_NAMES, command="segformer-spark data init 'a\nb'")
    config = load_config("leaves.yaml").config
    assert [row.name for row in config.data.folder.classes or ()] == ODD_NAMES
    assert config.data.root == folder
    assert len(open_dataset(config.data, "train")) > 0


@pytest.mark.parametrize("folder", ["a$b", "~x"])
def test_names_that_configurations_expand_are_refused(folder: str) -> None:
    index_folder(Path(folder), random_ids([0, 1]))
    with pytest.raises(UserError, match="are read as variables"):
        begin(Path(folder))


def test_palettes_give_the_colours() -> None:
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759
    folder = index_folder(Path("photos"), random_ids([0, 1, 2]), palette)
    assert [row.color for row in begin(folder).table.rows] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    assert set(np.unique(class_ids()[0])) == {0, 1, 2}


def test_numbers_of_16_bits() -> None:
    folder = index_folder(Path("photos"), random_ids([0, 1], dtype=np.uint16))
    begin(folder)
    assert set(np.unique(class_ids()[0])) == {0, 1}


def test_one_bit_masks() -> None:
    folder = index_folder(Path("photos"), [mask.astype(bool) for mask in random_ids([0, 1])])
    assert [row.label for row in begin(folder).table.rows] == [0, 1]
    assert set(np.unique(class_ids()[0])) == {0, 1}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_colours_black_first(suffix: str) -> None:
    table = np.array([RED, BLACK, GREEN], np.uint8)
    masks = random_ids([0, 1, 2])
    summary = begin(color_folder(Path("photos"), [table[mask] for mask in masks], suffix))
    assert summary.table.rows[0].color == BLACK
    assert {row.color for row in summary.table.rows} == {RED, BLACK, GREEN}
    assert {row.name for row in summary.table.rows} == {"background", "red", "green"}
    order = [summary.table.rows.index(next(r for r in summary.table.rows if r.color == c)) for c in (RED, BLACK, GREEN)]
    data = load_config("leaves.yaml").config.data
    dataset = open_dataset(data, "train")
    expected = np.array(order, np.uint8)[masks[int(dataset.files(0)[0].stem)]]
    assert (dataset.load(0).mask == expected).mean() > 0.97


@pytest.mark.parametrize("bands", [1, 3])
def test_smoothed_edges_are_accepted_and_said(bands: int) -> None:
    masks = []
    for index in range(4):
        mask = PIL.Image.fromarray((ellipse(index)[1] * 255).astype(np.uint8)).resize((128, 96)).resize((64, 48))
        masks.append(np.asarray(mask) if bands == 1 else np.stack([np.asarray(mask)] * 3, -1))
    summary = begin(color_folder(Path("photos"), masks))
    assert [row.color for row in summary.table.rows] == [BLACK, (255, 255, 255)]
    assert summary.table.nearest_color
    assert any("between the colours" in note for note in summary.notes)
    assert set(np.unique(class_ids()[0])) == {0, 1}


def test_folders_train_and_val_are_kept() -> None:
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        for index in range(number):
            picture, mask = ellipse(index)
            save(picture, Path("photos") / split / "images" / f"{index}.jpg")
            save(mask.astype(np.uint8), Path("photos") / split / "masks" / f"{index}.png")
    assert dict(begin(Path("photos")).num_images) == {"train": 3, "val": 2, "test": 1}


def test_groups_stay_together_and_the_split_is_seeded() -> None:
    for group in range(6):
        for index in range(3):
            picture, mask = ellipse(10 * group + index)
            save(picture, Path("photos/images") / f"plant{group}" / f"{index}.jpg")
            save(mask.astype(np.uint8), Path("photos/masks") / f"plant{group}" / f"{index}.png")

    def val() -> set[str]:
        return {line.split("/")[1] for line in Path("leaves.data/val.txt").read_text().splitlines()}

    begin(Path("photos"), group_by="category", val_fraction=0.3)
    first = val()
    train = {line.split("/")[1] for line in Path("leaves.data/train.txt").read_text().splitlines()}
    assert len(first) == 2
    assert not first & train
    begin(Path("photos"), group_by="category", val_fraction=0.3, overwrite=True)
    assert val() == first
    with pytest.raises(UserError, match="belong to one group"):
        begin(Path("photos"), group_by="(photo|plant)", overwrite=True)


def test_a_rare_class_is_on_both_sides() -> None:
    masks = random_ids([0, 1], 20)
    for index in (4, 11):
        masks[index] = random_ids([0, 2], 1)[0]
    begin(index_folder(Path("photos"), masks))
    assert any((mask == 2).any() for mask in class_ids("train"))
    assert any((mask == 2).any() for mask in class_ids("val"))


def turned_folder(square: bool, upright: bool) -> Path:
    for index in range(4):
        size = (48, 48) if square else SIZE
        picture, mask = ellipse(index, size)
        save(picture, Path("photos") / f"{index}.jpg", orientation=6)
        save(
            np.rot90(mask, -1).astype(np.uint8) if upright else mask.astype(np.uint8),
            Path("photos/masks") / f"{index}.png",
        )
    return Path("photos")


@pytest.mark.parametrize("upright", [True, False])
def test_sizes_tell_how_masks_of_turned_images_were_drawn(upright: bool) -> None:
    summary = begin(turned_folder(square=False, upright=upright))
    assert summary.exif_orientation == ("upright" if upright else "stored")
    mask = class_ids()[0]
    assert mask.shape == ((64, 48) if upright else (48, 64))


def test_turned_squares_are_a_question() -> None:
    folder = turned_folder(square=True, upright=True)
    with pytest.raises(DataError, match=r"4 images are turned .* Give --exif-orientation upright"):
        begin(folder)
    assert not Path("leaves.yaml").exists()
    assert begin(folder, exif_orientation="upright").exif_orientation == "upright"


def test_a_read_only_folder_is_enough() -> None:
    folder = ordinary_folder(Path("photos"))
    for path in (folder / "masks", folder):
        path.chmod(0o555)
    try:
        begin(folder)
    finally:
        for path in (folder, folder / "masks"):
            path.chmod(0o755)
    assert Path("leaves.yaml").is_file()


def test_left_and_right_are_exchanged_by_flips() -> None:
    folder = index_folder(Path("photos"), random_ids([0, 1, 2]))
    begin(folder, class_names=["none", "left hand", "right hand"])
    assert load_config("leaves.yaml").config.data.flip_pairs == [("left hand", "right hand")]


def test_what_is_left_out_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    folder = ordinary_folder(Path("photos"))
    save(ellipse(99)[0], folder / "more.jpg")
    with pytest.raises(
        DataError, match=r"1 images without a mask: more.jpg. Add what is missing, or .* --skip-unpaired"
    ):
        begin(folder)
    assert sum(begin(folder, skip_unpaired=True).num_images.values()) == 8


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (random_ids([0, 300], dtype=np.uint16), "numbers from 0 to 300, class numbers are 0 to 255"),
        ([np.random.default_rng(0).integers(0, 200, SIZE).astype(np.uint8)] * 3, "different numbers; this looks like"),
        ([np.zeros(SIZE, np.uint8)] * 3, "all masks hold one class"),
        (random_ids([0, 1])[:1], "1 images with a mask; a split needs two"),
    ],
)
def test_numbers_that_are_no_classes(masks: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        begin(index_folder(Path("photos"), masks))


def test_photographs_as_masks_are_refused() -> None:
    rng = np.random.default_rng(0)
    folder = color_folder(Path("photos"), [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(3)])
    with pytest.raises(DataError, match=r"colours, of which .* Are these the masks\?"):
        begin(folder)


def test_palettes_that_contradict_each_other_are_a_question() -> None:
    folder = Path("photos")
    for index, mask in enumerate(random_ids([0, 1], 2)):
        index_folder(folder / str(index), [mask], [0, 0, 0, 255 * index, 9, 0] + [0] * 762)
    with pytest.raises(DataError, match=r"shows the number 1 in .* Are the numbers right or the colours\?"):
        begin(folder)


def ellipse_beside(folder: Path) -> None:
    save(ellipse(9)[0], folder / "images" / "9.jpg")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "masks" / "0.png").write_bytes(b""), "0.png: the file is empty"),
        (lambda f: (f / "images" / "0.jpg").write_bytes(b"text"), "this is not an image"),
        (lambda f: save(np.zeros((9, 9), np.uint8), f / "masks" / "0.png"), "sizes must be equal"),
        (lambda f: save(np.zeros(SIZE, np.float32), f / "masks" / "9.tif") and ellipse_beside(f), "F image"),
        (lambda f: save(np.dstack([random_ids([0, 1, 2], 1)[0]] * 3), f / "masks" / "0.png"), "1 hold colours"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(damage: Any, message: str) -> None:
    folder = index_folder(Path("photos"), random_ids([0, 1]))
    damage(folder)
    with pytest.raises(DataError, match=message):
        begin(folder)
    assert not Path("leaves.yaml").exists()


def test_transparency_as_the_mask_is_a_question() -> None:
    for index in range(3):
        picture, mask = ellipse(index)
        save(picture, Path("photos/images") / f"{index}.jpg")
        save(np.dstack([np.zeros((*SIZE, 3), np.uint8), mask * np.uint8(255)]), Path("photos/masks") / f"{index}.png")
    with pytest.raises(DataError, match=r"Is the transparency the mask\?"):
        begin(Path("photos"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, "--name a b"),
        ({"name": ".."}, "--name .."),
        ({"output": Path("photos")}, "would lie in the folder of images"),
        ({"folder": Path("nowhere")}, "there is no such folder"),
    ],
)
def test_places_and_names(options: dict[str, Any], message: str) -> None:
    ordinary_folder(Path("photos"))
    with pytest.raises(UserError, match=message):
        init_project(InitOptions(**{"folder": Path("photos"), "name": "leaves", **options}))


def test_an_existing_configuration_is_not_replaced_unasked() -> None:
    folder = ordinary_folder(Path("photos"))
    begin(folder)
    with pytest.raises(UserError, match="--overwrite"):
        begin(folder)
    begin(folder, overwrite=True)


@pytest.mark.parametrize(
    ("size", "fitting"),
    [((48, 64), (64, 64)), ((3000, 4000), (448, 576)), ((512, 512), (512, 512)), ((20, 20), (32, 32))],
)
def test_the_input_has_the_ratio_of_the_images(size: tuple[int, int], fitting: tuple[int, int]) -> None:
    found = fitting_size(size)
    assert found == (fitting if size != (48, 64) else found)
    assert all(side % 32 == 0 for side in found)
    assert found[0] * found[1] <= 1.1 * 512 * 512


@pytest.mark.parametrize(("number", "batch"), [(1, 1), (4, 1), (19, 4), (1000, 8)])
def test_small_sets_have_small_batches(number: int, batch: int) -> None:
    found, epochs = batch_and_epochs(number)
    assert found == batch
    assert 20 <= epochs <= 300
    assert json.dumps(epochs)
