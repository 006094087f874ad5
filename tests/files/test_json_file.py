"""One reader for all JSON: anything else is an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segformer_spark.errors import DataError
from segformer_spark.files.json_file import read_json, read_json_lines, read_json_object

READERS: list[Callable[[Path], object]] = [read_json, read_json_object, read_json_lines]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes_give_values_or_an_error_with_the_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in READERS:
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")


def test_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [1, "ä"]}))
    assert read_json_object(path) == read_json(path) == {"a": [1, "ä"]}
    path.write_text("[1]")
    assert read_json(path) == [1]
    with pytest.raises(DataError, match="not a JSON object"):
        read_json_object(path)


def test_depth_and_size_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    for read in (read_json, read_json_object):
        with pytest.raises(DataError, match="this is not JSON"):
            read(path)
    with pytest.raises(DataError, match="200000 bytes are too many; the limit is 99"):
        read_json(path, 99)


def test_lines_that_are_no_objects_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    path.write_bytes(b'{"step": 1}\n[2]\n\xff\n{"step": 3}\n{"step": 4')
    with caplog.at_level("WARNING", "segformer_spark"):
        assert read_json_lines(path) == [{"step": 1}, {"step": 3}]
    assert "3 of 5 lines are no JSON objects and are left out" in caplog.text
