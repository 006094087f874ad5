from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data import identity
from segformer_spark.data.identity import FileDigests, file_state, read_digests
from segformer_spark.data.manifest import manifest_path, read_manifest, write_manifest
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.data.scan import scan
from segformer_spark.errors import DataError
from segformer_spark.files.digest import sha256_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read."""
    files: list[Path] = []

    def counted(path: Path) -> str:
        files.append(path)
        return sha256_of(path)

    monkeypatch.setattr(identity, "sha256_of", counted)
    return files


def digest(root: Path, known: FileDigests | None = None) -> str:
    return (known or FileDigests(root)).of_split(SparkDataset(root, "train"))


def test_a_moved_or_copied_set_is_the_same_one(own_spark_root: Path, tmp_path: Path) -> None:
    before = digest(own_spark_root)
    shutil.copytree(own_spark_root, tmp_path / "copy")
    own_spark_root.rename(tmp_path / "moved")
    assert digest(tmp_path / "copy") == digest(tmp_path / "moved") == before


@pytest.mark.parametrize("kind", [0, 1])
def test_one_byte_makes_another_set_whatever_the_length(own_spark_root: Path, kind: int) -> None:
    before = digest(own_spark_root)
    path = SparkDataset(own_spark_root, "train").files(2)[kind]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert digest(own_spark_root) != before


def test_names_and_order_count(own_spark_root: Path) -> None:
    before = digest(own_spark_root)
    table = own_spark_root / "train.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert digest(own_spark_root) != before


def test_it_is_the_manifests_digest(own_spark_root: Path, read: list[Path]) -> None:
    config, dataset = DataConfig(root=str(own_spark_root)), SparkDataset(own_spark_root, "train")
    facts = {"train": list(scan(dataset, 0))}
    write_manifest(manifest_path(config), "spark", own_spark_root, dataset.classes.names, facts)
    manifest, files = read_manifest(config, "train"), FileDigests(own_spark_root)
    files.learn(manifest.stamps())
    assert digest(own_spark_root, files) == manifest.digest == digest(own_spark_root)
    assert len(read) == 2 * len(dataset), "the manifest's stamps spared the first reading"


def test_only_what_changed_is_read_again(own_spark_root: Path, tmp_path: Path, read: list[Path]) -> None:
    files = FileDigests(own_spark_root)
    before = digest(own_spark_root, files)
    files.write(tmp_path / "data_files.json")
    read.clear()
    again = read_digests(tmp_path / "data_files.json", own_spark_root)
    assert digest(own_spark_root, again) == before
    assert read == []
    touched, replaced = SparkDataset(own_spark_root, "train").files(0)
    os.utime(touched, ns=(1, 1))
    content, state = replaced.read_bytes(), file_state(replaced)
    replaced.rename(tmp_path / "old")
    replaced.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
    os.utime(replaced, ns=(state[1], state[1]))
    again = read_digests(tmp_path / "data_files.json", own_spark_root)
    assert digest(own_spark_root, again) != before, "the same length and time, another inode"
    assert sorted(read) == sorted([touched, replaced])


@pytest.mark.parametrize("content", ["", "[]", '{"format": 9, "files": {}}', '{"files": {"a": 3}}'])
def test_a_list_that_cannot_be_read_is_made_anew(own_spark_root: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "data_files.json"
    path.write_text(content)
    assert digest(own_spark_root, read_digests(path, own_spark_root)) == digest(own_spark_root)


def test_a_file_that_is_gone_is_named(own_spark_root: Path) -> None:
    dataset = SparkDataset(own_spark_root, "train")
    path = dataset.files(1)[0]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: the file cannot be read: No such file"):
        FileDigests(own_spark_root).of_split(dataset)
