from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from segformer_spark.data.demo.once import render_once
from segformer_spark.data.demo.render import render
from segformer_spark.data.demo.shapes import SHAPES
from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.data.readers.spark import SPACECRAFT, SparkDataset
from segformer_spark.errors import DataError, UserError


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make(root: Path, seed: int) -> dict[str, str]:
    write_demo_set(root, num_train=11, num_val=2, num_test=2, size=48, seed=seed)
    return digests(root)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = make(tmp_path / "a", 1)
    assert make(tmp_path / "b", 1) == first
    other = make(tmp_path / "c", 2)
    assert other.keys() == first.keys()
    assert other["train.csv"] != first["train.csv"]


def test_the_tree_is_that_of_spark(tmp_path: Path) -> None:
    names = set(make(tmp_path / "a", 1))
    assert {"train.csv", "val.csv", "stream-1-test/test_00000_img.jpg", "stream-1-test/test_00001_img.jpg"} <= names
    assert "images/XMM Newton/train/image_00000_img.jpg" in names
    assert "mask/XMM Newton/train/image_00000_layer.jpg" in names
    assert "images/VenusExpress/train/image_00001_img.jpg" in names, "numbers restart per class"
    assert len(names) == 2 + 2 * 13 + 2
    assert len(SparkDataset(tmp_path / "a", "train")) == 11


def test_a_full_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        make(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        make(tmp_path / "a", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spacecraft", SPACECRAFT)
def test_each_spacecraft_shows_body_and_panels(spacecraft: str) -> None:
    rng = np.random.default_rng(3)
    seen = np.zeros(3, np.int64)
    for _ in range(8):
        rendered = render(spacecraft, 64, rng)
        seen += np.bincount(rendered.mask.ravel(), minlength=3)
        ys, xs = np.nonzero(rendered.mask)
        assert rendered.box == (xs.min(), ys.min(), xs.max(), ys.max())
    assert (seen > 0).all()


def test_spacecraft_are_the_official_ones() -> None:
    assert tuple(SHAPES) == SPACECRAFT


def test_sizes_spread_as_in_spark() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([render(SPACECRAFT[i % 10], 64, rng).box for i in range(300)])
    share = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1) / 64**2
    assert 0.08 < share.mean() < 0.16
    assert share.min() < 0.02
    assert share.max() > 0.4


def test_a_set_is_rendered_once_for_the_same_numbers(tmp_path: Path) -> None:
    root = tmp_path / "set"
    calls: list[object] = []

    def draw() -> None:
        calls.append(sorted(path.name for path in root.iterdir()) if root.exists() else None)
        root.mkdir()
        (root / f"image_{len(calls)}.png").touch()

    assert render_once(root, {"size": 8}, draw)
    assert not render_once(root, {"size": 8}, draw)
    assert render_once(root, {"size": 9}, draw)
    assert calls == [None, None]
    assert sorted(path.name for path in root.iterdir()) == ["demo.json", "image_2.png"]


def test_what_nobody_rendered_is_not_removed_and_what_was_cut_off_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.png").touch()

    def stop() -> None:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        render_once(tmp_path, {"size": 8}, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
