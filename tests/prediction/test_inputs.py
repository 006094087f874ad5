from __future__ import annotations

from pathlib import Path

import pytest

from segformer_spark.errors import UserError
from segformer_spark.prediction.inputs import find_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "sub/a.tif", "notes.txt", ".hidden.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def names(*given: Path, output: Path) -> list[str]:
    return [image.name for image in find_images(given, output)]


def test_folders_files_and_patterns(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert names(photos, output=out) == ["a", "b", "sub/a"]
    assert names(photos / "a.jpg", output=out) == ["a"]
    assert names(photos / "*.jpg", output=out) == ["a"]
    assert names(photos / "**" / "*.tif", output=out) == ["a"]
    assert names(photos, photos / "a.jpg", output=out) == ["a", "b", "sub/a"], (
        "an image that is given twice counts once"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "there is no such file or folder"),
        ("photos/*.gif", "no image has a name of this pattern"),
        ("photos/notes.txt", "this is no image of a known kind"),
        ("empty", "there are no images"),
    ],
)
def test_nothing_to_predict(photos: Path, tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_images([tmp_path / given], tmp_path / "out")


@pytest.mark.parametrize("output", ["photos", "photos/masks", "."])
def test_results_do_not_lie_among_the_images(photos: Path, tmp_path: Path, output: str) -> None:
    with pytest.raises(UserError, match="lies in the folder"):
        find_images([photos], tmp_path / output)


def test_names_that_collide_without_their_suffix(photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").touch()
    with pytest.raises(UserError, match=r"a.jpg and .*a.png would both become a.png"):
        find_images([photos], tmp_path / "out")
