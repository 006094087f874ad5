from __future__ import annotations

from pathlib import Path

import pytest

from segformer_spark.data.pairing import find_pairs, refuse_without_partner
from segformer_spark.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize(
    "pairs",
    [
        {"images/a.jpg": "masks/a.png", "images/b.JPG": "masks/b.png"},
        {"images/train/a.jpg": "masks/train/a.png", "images/val/a.jpg": "masks/val/a.png"},
        {"train/images/a.jpg": "train/masks/a.png", "val/images/a.jpg": "val/masks/a.png"},
        {"a.jpg": "a_mask.png", "b.tif": "b_mask.tif"},
        {"a.jpeg": "a.png", "b.jpeg": "b.png"},
        {"IMG 001.JPG": "masks/IMG 001_mask.png", "IMG 002.JPG": "masks/IMG 002_mask.png"},
        {"image_001.png": "mask_001.png", "image_002.png": "mask_002.png"},
        {"photos/day1/a.jpg": "annotations/a.png", "photos/day2/b.jpg": "annotations/b.png"},
        {"leftImg/x/a_img.png": "labels/leftImg/x/a_label.png"},
        {"JPEGImages/a.jpg": "SegmentationClass/a.png"},
        {"images/a_gt.jpg": "masks/a_gt.png"},
    ],
    ids=lambda pairs: next(iter(pairs.values())),
)
def test_layouts_as_people_have_them(tmp_path: Path, pairs: dict[str, str]) -> None:
    touch(tmp_path, *pairs, *pairs.values(), "notes.txt", ".hidden.png")
    found = find_pairs(tmp_path)
    relative = {str(image.relative_to(tmp_path)): str(mask.relative_to(tmp_path)) for image, mask in found.pairs}
    assert relative == pairs
    assert not found.without_mask
    assert not found.without_image
    assert len(set(found.names)) == len(pairs)


def test_files_without_a_partner_are_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png")
    found = find_pairs(tmp_path)
    assert [path.name for path in found.without_mask] == ["b.jpg"]
    assert [path.name for path in found.without_image] == ["c.png"]
    with pytest.raises(
        DataError, match=r"1 images without a mask: images/b.jpg; 1 masks without an image: masks/c.png"
    ):
        refuse_without_partner(found, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.jpg", "a_mask.png", "a_label.png"), "two masks for one image"),
        (("images/a.jpg", "images/a.png", "masks/a.png"), "two images for one mask"),
    ],
)
def test_two_for_one_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_pairs(touch(tmp_path, *names))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no images"):
        find_pairs(tmp_path)
