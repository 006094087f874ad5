"""What is no file is refused and not waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segformer_spark.files.paths import real_path
from segformer_spark.files.regular_file import append_regular, open_regular, read_regular


def test_contents(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with append_regular(path) as stream:
        stream.write(b"one ")
    with append_regular(path) as stream:
        stream.write(b"two")
    assert read_regular(path) == b"one two"
    with open_regular(path) as stream:
        assert stream.read(3) == b"one"
    with pytest.raises(OSError, match="7 bytes are too many; the limit is 6"):
        read_regular(path, 6)
    assert path.stat().st_mode & 0o111 == 0


def test_pipes_folders_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(OSError, match=f"this is {what}, not a file"):
            open_regular(path)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError):  # noqa: PT011 - the system's own words for a pipe without a reader
            append_regular(path)


def test_a_link_to_itself_stays(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert real_path(loop) == Path(os.path.realpath(tmp_path)) / "loop"
    with pytest.raises(OSError, match="Too many levels"):
        open_regular(loop)
    (tmp_path / "link").symlink_to(tmp_path)
    assert real_path(tmp_path / "link" / "a") == real_path(tmp_path) / "a"
