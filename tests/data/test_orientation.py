from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from segformer_spark.config.schema import DataConfig, FolderConfig
from segformer_spark.data.decode import Decoding, read_image
from segformer_spark.data.masks import read_index_mask
from segformer_spark.data.orientation import turn_back, turn_upright
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from tests.data.image_files import ORIENTATION, encode, picture, save

TABLE = FolderConfig.model_validate(
    {"masks": "index", "classes": [{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [9, 9, 9]}]}
)
UPRIGHT, STORED = Decoding(orientation="upright"), Decoding(orientation="stored")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_makes_of_the_tag_and_can_be_undone(orientation: int) -> None:
    pixels = picture()
    image = PIL.Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    turned = turn_upright(pixels, orientation)
    np.testing.assert_array_equal(turned, np.asarray(PIL.ImageOps.exif_transpose(image)))
    np.testing.assert_array_equal(turn_back(turned, orientation), pixels)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp", "tif-lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_gives_stored_and_upright_pixels(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = picture()
    options = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
        "tif-lzw": {"compression": "tiff_lzw"},
    }.get(kind, {})
    name = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}.get(kind, "TIFF")
    path = save(tmp_path / f"x.{kind[:3]}", encode(pixels, name, orientation, **options))
    stored = read_image(path, decoding=STORED)
    assert np.abs(stored.astype(int) - pixels).max() <= (6 if kind == "jpg" else 0)
    np.testing.assert_array_equal(read_image(path), stored)
    np.testing.assert_array_equal(read_image(path, decoding=UPRIGHT), turn_upright(stored, orientation))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_index_masks_turn_like_images(tmp_path: Path, kind: str, orientation: int) -> None:
    labels = picture()[..., 0] % 2
    path = save(tmp_path / "mask.png", encode(labels, kind, orientation))
    np.testing.assert_array_equal(read_index_mask(path, {0: 0, 1: 1}, decoding=STORED), labels)
    turned = read_index_mask(path, {0: 0, 1: 1}, decoding=UPRIGHT)
    np.testing.assert_array_equal(turned, turn_upright(labels, orientation))


def write_pair(root: Path, image_tag: int, mask_tag: int, size: tuple[int, int] = (16, 16)) -> None:
    labels = np.zeros(size, np.uint8)
    labels[:4, :6] = 1
    bright = np.repeat(labels[..., None] * 200, 3, axis=2)
    save(root / "images/train/x.png", encode(bright, "PNG", image_tag))
    save(root / "masks/train/x.png", encode(labels, "PNG", mask_tag))


def load(root: Path, setting: str | None) -> tuple[np.ndarray, np.ndarray, int]:
    config = DataConfig(dataset="folder", root=str(root), folder=TABLE, exif_orientation=setting)  # type: ignore[arg-type]
    sample = open_dataset(config, "train").load(0)
    return sample.image[..., 0] // 200, sample.mask, sample.orientation


@pytest.mark.parametrize("tags", [(3, 1), (6, 1), (6, 8), (2, 3)])
def test_a_turned_image_whose_mask_has_another_tag_waits_for_the_setting(tmp_path: Path, tags: tuple[int, int]) -> None:
    write_pair(tmp_path, *tags)
    with pytest.raises(
        DataError, match=rf"x\.png: the image has EXIF orientation {tags[0]}.*Set data.exif_orientation"
    ):
        load(tmp_path, None)
    image, mask, _ = load(tmp_path, "stored")
    np.testing.assert_array_equal(image, mask)
    image, mask, orientation = load(tmp_path, "upright")
    np.testing.assert_array_equal(turn_back(image, tags[0]), turn_back(mask, tags[1]))
    assert orientation == 1


@pytest.mark.parametrize("setting", [None, "stored", "upright"])
def test_equal_tags_agree_in_every_setting(tmp_path: Path, setting: str | None) -> None:
    write_pair(tmp_path, 6, 6, (8, 20))
    image, mask, orientation = load(tmp_path, setting)
    np.testing.assert_array_equal(image, mask)
    assert mask.shape == ((20, 8) if setting == "upright" else (8, 20))
    assert orientation == (1 if setting == "upright" else 6), "by which viewers turn these pixels"
