from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.manifest import check_matches, manifest_path, read_manifest, write_manifest
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.data.scan import scan
from segformer_spark.errors import DataError


def make(root: Path) -> DataConfig:
    config = DataConfig(root=str(root))
    dataset = SparkDataset(root, "train")
    write_manifest(manifest_path(config), "spark", root, dataset.classes.names, {"train": list(scan(dataset, 0))})
    return config


def test_it_holds_digests_sizes_and_pixels(own_spark_root: Path) -> None:
    config = make(own_spark_root)
    dataset = SparkDataset(own_spark_root, "train")
    manifest = read_manifest(config, "train")
    check_matches(manifest, dataset, own_spark_root)
    assert len(manifest.images) == len(dataset)
    entry, (image, _) = manifest.images[2], dataset.files(2)
    assert own_spark_root / entry["image"] == image
    assert entry["image_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert entry["image_bytes"] == image.stat().st_size
    assert manifest.pixels == [sum(e["pixels"][c] for e in manifest.images) for c in range(3)]


def test_the_digest_follows_the_files(own_spark_root: Path) -> None:
    before = read_manifest(make(own_spark_root), "train").digest
    assert read_manifest(make(own_spark_root), "train").digest == before
    first, second = (SparkDataset(own_spark_root, "train").files(i)[0] for i in (0, 1))
    second.write_bytes(first.read_bytes())
    changed = read_manifest(make(own_spark_root), "train").digest
    assert changed != before
    first, second = (SparkDataset(own_spark_root, "train").files(i)[1] for i in (0, 1))
    second.write_bytes(first.read_bytes())
    assert read_manifest(make(own_spark_root), "train").digest not in (before, changed), "masks count too"


@pytest.mark.parametrize("kind", [0, 1])
def test_files_that_changed_since(own_spark_root: Path, kind: int) -> None:
    """In place, with as many bytes as before."""
    manifest = read_manifest(make(own_spark_root), "train")
    dataset = SparkDataset(own_spark_root, "train")
    path = dataset.files(4)[kind]
    content = path.read_bytes()
    path.write_bytes(content[:-10] + b"\0" + content[-9:])
    with pytest.raises(DataError, match=rf"{path.name}: .* the files were changed since \(1 of them\)"):
        check_matches(manifest, dataset, own_spark_root)


def test_another_number_order_or_class_table(own_spark_root: Path, spark_root: Path) -> None:
    manifest = read_manifest(make(own_spark_root), "train")
    with pytest.raises(DataError, match="has 12 images, the data set has 7; run `segformer-spark data check` again"):
        check_matches(manifest, SparkDataset(own_spark_root, "val"), own_spark_root)
    table = own_spark_root / "train.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(rows)]) + "\n")
    with pytest.raises(DataError, match="where the data set has"):
        check_matches(manifest, SparkDataset(own_spark_root, "train"), own_spark_root)


def test_no_empty_or_damaged_manifest_is_used(own_spark_root: Path) -> None:
    config = DataConfig(root=str(own_spark_root))
    with pytest.raises(DataError, match="there is no manifest; make it with: segformer-spark data check"):
        read_manifest(config, "train")
    make(own_spark_root)
    path = manifest_path(config)
    with pytest.raises(DataError, match="no split 'val', only train"):
        read_manifest(config, "val")
    raw = json.loads(path.read_text())
    raw["splits"]["train"]["images"] = []
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="the manifest is empty"):
        read_manifest(config, "train")
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="not a manifest that can be read"):
        read_manifest(config, "train")


def test_damaged_items_are_listed_and_named(own_spark_root: Path) -> None:
    path = SparkDataset(own_spark_root, "train").files(3)[0]
    path.write_bytes(path.read_bytes()[:300])
    manifest = read_manifest(make(own_spark_root), "train")
    assert manifest.damaged == [path.relative_to(own_spark_root).as_posix()]
    with pytest.raises(DataError, match=rf"1 images cannot be read .* first .*{path.name}; repair or remove them"):
        check_matches(manifest, SparkDataset(own_spark_root, "train"), own_spark_root)


def test_other_splits_stay(own_spark_root: Path) -> None:
    config = make(own_spark_root)
    dataset = SparkDataset(own_spark_root, "val")
    facts = {"val": list(scan(dataset, 0))}
    write_manifest(manifest_path(config), "spark", own_spark_root, dataset.classes.names, facts)
    assert len(read_manifest(config, "train").images) == 12
    assert len(read_manifest(config, "val").images) == 7
    write_manifest(manifest_path(config), "spark", own_spark_root, ("other", "classes"), facts)
    with pytest.raises(DataError, match="no split 'train', only val"):
        read_manifest(config, "train")
