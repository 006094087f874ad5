from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.image_size import Size, height_width
from segformer_spark.config.load import load_config
from segformer_spark.config.schema import Config, CropConfig
from segformer_spark.data import cache_build
from segformer_spark.data.cache import META, CachedDataset, check_source
from segformer_spark.data.cache_build import CacheOptions, build_cache, cache_folder
from segformer_spark.data.loader import TrainLoader
from segformer_spark.data.manifest import manifest_path, read_manifest, write_manifest
from segformer_spark.data.registry import open_dataset, open_training_set
from segformer_spark.data.sampler import Position, TrainBatchSampler
from segformer_spark.data.scan import scan
from segformer_spark.errors import ConfigError, DataError
from tests.ranks import forked, run_on_ranks
from tests.training.short_run import short_run


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "SHARD_IMAGES", 5)


def configuration(root: Path, *overrides: str) -> Config:
    return load_config(overrides=[f"data.root={root}", "data.image_size=48", "data.num_workers=0", *overrides]).config


def make_manifest(config: Config) -> None:
    dataset = open_dataset(config.data, "train")
    facts = {"train": list(scan(dataset, 0))}
    write_manifest(manifest_path(config.data), "spark", Path(config.data.root), dataset.classes.names, facts)


def build(config: Config, parent: Path, size: int | Size | None, storage: str) -> Path:
    if not manifest_path(config.data).is_file():
        make_manifest(config)
    manifest, options = (
        read_manifest(config.data, "train"),
        CacheOptions(None if size is None else height_width(size), storage),
    )
    folder = cache_folder(parent, config.data, "train", options, manifest.digest)
    return build_cache(open_dataset(config.data, "train"), manifest, folder, config.data, options, num_workers=0)


def fed(config: Config) -> list[tuple[bytes, bytes]]:
    """Every training batch of two epochs."""
    dataset = open_training_set(config.data, config.augmentation.crop)
    sampler = TrainBatchSampler(len(dataset), BatchPlan(3, 1, 1), 0, 1)
    out = []
    for epoch in range(2):
        sampler.start_at(Position(epoch, 0))
        loader = TrainLoader(dataset, config, sampler, pin=False)
        out += [(batch.images.numpy().tobytes(), batch.masks.numpy().tobytes()) for batch in loader]
    return out


@pytest.mark.parametrize(
    ("size", "storage", "crop"), [(48, "raw", "none"), (None, "original", "box"), (None, "raw", "variable")]
)
def test_training_sees_the_same_bytes_as_from_the_files(
    own_spark_root: Path, tmp_path: Path, size: int | None, storage: str, crop: str
) -> None:
    settings = (f"augmentation.crop.mode={crop}", "augmentation.mosaic=0.3", "augmentation.photometric=0.5")
    config = configuration(own_spark_root, *settings)
    build(config, tmp_path, size, storage)
    from_cache = configuration(own_spark_root, *settings, f"data.cache={tmp_path}")
    assert isinstance(open_training_set(from_cache.data, from_cache.augmentation.crop), CachedDataset)
    assert fed(from_cache) == fed(config)


@pytest.mark.parametrize("size", [48, None])
def test_images_that_version_0_1_resized_are_not_used(own_spark_root: Path, tmp_path: Path, size: int | None) -> None:
    config = configuration(own_spark_root)
    folder = build(config, tmp_path, size, "raw")
    meta = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**meta, "format": 1}))
    reason = "by an earlier version" if size is None else r"resized by version 0\.1"
    with pytest.raises(DataError, match=f"{reason}.*Build one with"):
        CachedDataset(tmp_path, config.data)


def test_everything_else_is_kept(own_spark_root: Path, tmp_path: Path) -> None:
    config = configuration(own_spark_root)
    files = open_dataset(config.data, "train")
    cached = CachedDataset(build(config, tmp_path, None, "original"), config.data)
    assert len(cached) == len(files)
    assert cached.classes == files.classes
    assert list(cached.categories) == list(files.categories)
    for index in range(len(files)):
        assert cached.sample_id(index) == files.sample_id(index)
        assert cached.category(index) == files.category(index)
        assert cached.box(index) == files.box(index)
        assert cached.files(index) == files.files(index)
        np.testing.assert_array_equal(cached.load(index).mask, files.load(index).mask)
    cached.verify()


def test_jpeg_is_smaller_and_said_not_to_be_exact(own_spark_root: Path, tmp_path: Path) -> None:
    config = configuration(own_spark_root)
    raw, jpeg = (CachedDataset(build(config, tmp_path, 48, kind), config.data) for kind in ("raw", "jpeg"))
    difference = raw.load(0).image.astype(int) - jpeg.load(0).image
    assert 0 < np.abs(difference).mean() < 6
    np.testing.assert_array_equal(raw.load(0).mask, jpeg.load(0).mask)
    assert raw.fidelity == "exact"
    assert jpeg.fidelity == "jpeg 95 at 48"
    assert CachedDataset(tmp_path, config.data).storage == "raw", "of both the exact one is taken"


def test_a_build_that_was_cut_off_goes_on(
    own_spark_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(own_spark_root)
    make_manifest(config)
    original: Callable[..., None] = cache_build._ShardBuilder._write
    written: list[int] = []

    def stopping(self: object, number: int, indices: object) -> None:
        if number == 2 and not written.count(2):
            written.append(2)
            raise DataError("cut off")
        written.append(number)
        original(self, number, indices)

    monkeypatch.setattr(cache_build._ShardBuilder, "_write", stopping)
    with pytest.raises(DataError, match="cut off"):
        build(config, tmp_path, 48, "raw")
    with pytest.raises(DataError, match="there is no finished cache"):
        CachedDataset(tmp_path, config.data)
    folder = build(config, tmp_path, 48, "raw")
    assert written == [0, 1, 2, 2], "finished shards are not written again"
    CachedDataset(folder, config.data).verify()


def _build_here(root: str, folder: str) -> None:
    cache_build.SHARD_IMAGES = 2
    config = configuration(Path(root))
    CachedDataset(build(config, Path(folder), 48, "raw"), config.data).verify()


def test_two_builds_at_once_leave_one_cache(own_spark_root: Path, tmp_path: Path) -> None:
    make_manifest(configuration(own_spark_root))
    whole = tmp_path / "whole"
    _build_here(str(own_spark_root), str(whole))
    both = [forked(_build_here, str(own_spark_root), str(tmp_path / "both")) for _ in range(3)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0, 0]
    contents = [
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (whole, tmp_path / "both")
    ]
    assert contents[0] == contents[1]


def test_damage_is_found(own_spark_root: Path, tmp_path: Path) -> None:
    config = configuration(own_spark_root)
    folder = build(config, tmp_path, 48, "raw")
    shard = folder / "shard-00001.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="shard-00001.bin: image 5 is damaged; remove the folder"):
        CachedDataset(folder, config.data).verify()
    shard.write_bytes(content[:1000])
    with pytest.raises(DataError, match="is damaged"):
        CachedDataset(folder, config.data).verify()
    shard.unlink()
    with pytest.raises(DataError, match="the shard cannot be read"):
        CachedDataset(folder, config.data).load(7)


def test_a_file_that_is_not_the_manifests(own_spark_root: Path, tmp_path: Path) -> None:
    config = configuration(own_spark_root)
    make_manifest(config)
    first, second = (open_dataset(config.data, "train").files(i)[0] for i in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=r"not the one of the manifest \(sha256 differs\)"):
        build(config, tmp_path, 48, "raw")


def test_reduced_decoding_is_for_whole_images_of_files_and_of_original_bytes(
    own_spark_root: Path, tmp_path: Path
) -> None:
    plain, reduced = configuration(own_spark_root), configuration(own_spark_root, "data.reduced_decode=true")
    native = open_training_set(plain.data, plain.augmentation.crop).load(0)
    small = open_training_set(reduced.data, reduced.augmentation.crop).load(0)
    assert small.image.shape[0] == native.image.shape[0] // 2 >= 48
    assert np.array_equal(small.mask, native.mask)
    build(plain, tmp_path, None, "original")
    cached = configuration(own_spark_root, "data.reduced_decode=true", f"data.cache={tmp_path}")
    assert fed(cached) == fed(reduced) != fed(plain)
    with pytest.raises(ConfigError, match="reduced_decode goes with whole images, augmentation.crop.mode is random"):
        open_training_set(reduced.data, CropConfig(mode="random"))


def test_a_cache_that_does_not_fit_says_why(own_spark_root: Path, tmp_path: Path) -> None:
    config = configuration(own_spark_root)
    folder = build(config, tmp_path, 48, "raw")
    with pytest.raises(DataError, match=r"its images have 48 px, data.image_size is 64.*Build one with"):
        CachedDataset(tmp_path, configuration(own_spark_root, "data.image_size=64").data)
    with pytest.raises(DataError, match="data.image_size is 48x64"):
        CachedDataset(tmp_path, configuration(own_spark_root, "data.image_size=48x64").data)
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps({**meta, "digest": "0" * 64}))
    with pytest.raises(DataError, match="the manifest no longer matches"):
        CachedDataset(tmp_path, config.data)
    (folder / META).write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match="crop.mode box cuts from native images, the cache holds 48 px"):
        open_training_set(configuration(own_spark_root, f"data.cache={tmp_path}").data, CropConfig(mode="box"))
    with pytest.raises(ConfigError, match="original bytes have the original size"):
        CacheOptions((64, 64), "original")


def test_losses_are_bit_equal(own_spark_root: Path, tmp_path: Path) -> None:
    """Of rectangles, whose other settings are those of squares."""
    size = "data.image_size=40x64"
    build(configuration(own_spark_root, size), tmp_path / "packed", (40, 64), "raw")
    runs = [
        run_on_ranks(1, short_run, str(own_spark_root), str(tmp_path / name), ("training.epochs=1", size, *settings))[0]
        for name, settings in {"files": (), "cache": (f"data.cache={tmp_path / 'packed'}",)}.items()
    ]
    assert runs[0] == runs[1]


def test_a_cache_of_other_files_is_refused_before_training(
    own_spark_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configuration(own_spark_root)
    cached = CachedDataset(build(config, tmp_path, 48, "raw"), config.data)
    check_source(cached, config.data)
    path = cached.files(0)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"\0" + content[-8:])
    with pytest.raises(DataError, match="the files were changed since"):
        check_source(cached, config.data)
    manifest_path(config.data).unlink()
    with pytest.raises(DataError, match="were changed since the cache was built"):
        check_source(CachedDataset(tmp_path, config.data), config.data)
    path.write_bytes(content)
    check_source(CachedDataset(tmp_path, config.data), config.data)
    own_spark_root.rename(tmp_path / "elsewhere")
    with caplog.at_level("WARNING", logger="segformer_spark"):
        logging.getLogger("segformer_spark").propagate = True
        check_source(CachedDataset(tmp_path, config.data), config.data)
    assert "it is taken as it is" in caplog.text


def test_another_class_table_needs_another_cache(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for kind, value in (("images", 90), ("masks", 1)):
        (root / kind / "train").mkdir(parents=True)
        cv2.imwrite(str(root / kind / "train" / "x.png"), np.full((8, 8), value, np.uint8))

    def table(*ids: int) -> Config:
        rows = ", ".join(f"{{name: c{i}, color: [{i}, 0, 0], id: {i}}}" for i in ids)
        folder = f"data.folder={{masks: index, classes: [{rows}]}}"
        return configuration(root, "data.dataset=folder", folder)

    first, second = table(0, 1), table(1, 0)
    one = build(first, tmp_path / "caches", None, "original")
    assert (CachedDataset(one, first.data).load(0).mask == 1).all()
    with pytest.raises(DataError, match="data.folder was another when it was built"):
        CachedDataset(one, second.data)
    manifest_path(second.data).unlink()
    two = build(second, tmp_path / "caches", None, "original")
    assert two != one
    assert (CachedDataset(tmp_path / "caches", second.data).load(0).mask == 0).all()
