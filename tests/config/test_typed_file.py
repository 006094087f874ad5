from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import Field

from segformer_spark.config.section import Section
from segformer_spark.config.typed_file import MAX_BYTES, read_text, read_typed
from segformer_spark.errors import ConfigError


class Inner(Section):
    seeds: list[int] = Field(default_factory=lambda: [1])


class Outer(Section):
    name: str
    inner: Inner = Inner()


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_typed(path, "sweep file", Outer)
    return str(error.value)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


def test_types_are_those_of_the_model(tmp_path: Path) -> None:
    assert read_typed(write(tmp_path, "name: on\ninner: {seeds: [1, 2]}\n"), "sweep file", Outer) == Outer(
        name="on", inner=Inner(seeds=[1, 2])
    )


def test_mistakes_are_named_with_file_line_and_key(tmp_path: Path) -> None:
    assert "a.yaml:2: inner.sedes" in refused(write(tmp_path, "name: x\ninner: {sedes: [1]}\n"))
    assert "Did you mean seeds?" in refused(write(tmp_path, "name: x\ninner: {sedes: [1]}\n"))
    assert "Did you mean inner.seeds?" in refused(write(tmp_path, "name: x\nseeds: [1]\n")), "the exact name elsewhere"
    assert "a.yaml:1: name" in refused(write(tmp_path, "name: 3\n"))
    assert "name" in refused(write(tmp_path, "inner: {}\n"))
    assert "is a mapping with the keys name, inner" in refused(write(tmp_path, "- 1\n"))


def test_only_regular_files_of_a_moderate_size_in_utf_8(tmp_path: Path) -> None:
    assert "there is no such sweep file" in refused(tmp_path / "none.yaml")
    assert "this is a folder, not a file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "this is a pipe, not a file" in refused(tmp_path / "pipe"), "and not waited for"
    large = write(tmp_path, "#" * (MAX_BYTES + 1))
    assert f"{MAX_BYTES + 1} bytes are too many" in refused(large)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"name: \xff\n")
    assert "is not text in UTF-8" in refused(binary)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_text(path, "sweep file") == "name: x\n"
