from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from segformer_spark.checkpoint.names import step_of
from segformer_spark.checkpoint.store import CheckpointStore
from segformer_spark.errors import CheckpointError
from segformer_spark.files import visibility
from segformer_spark.files.visibility import is_on_network, wait_until_visible
from tests.test_killed_anywhere import stored

MOUNTS = """22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /scratch rw,relatime shared:1 - nfs4 server:/scratch rw
31 30 8:2 / /scratch/local rw - xfs /dev/sdb1 rw
32 22 0:41 / /project\\040space rw - lustre mds@tcp:/p rw
33 22 0:42 / /scr rw - tmpfs tmpfs rw
"""


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def read_text(path: Path, *args: object, **options: object) -> str:
        return MOUNTS if str(path) == "/proc/self/mountinfo" else real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/me/runs", False),
        ("/scratch", True),
        ("/scratch/me/runs", True),
        ("/scratch/local/x", False),
        ("/project space/runs", True),
        ("/scr/x", False),
        ("/scratches", False),
    ],
)
def test_the_innermost_mount_decides(folder: str, expected: bool) -> None:
    assert is_on_network(Path(folder)) is expected


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "is_on_network", lambda folder: True)
    monkeypatch.setattr(visibility, "_PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(visibility, "_PAUSE_SECONDS", 0.02)


@pytest.mark.usefixtures("network")
def test_a_checkpoint_that_appears_late_is_taken(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.save(1, stored(1))
    late = store.save(2, stored(2))
    hidden = late.rename(tmp_path / "hidden")
    threading.Timer(0.3, lambda: hidden.rename(late)).start()
    found = store.newest_intact()
    assert found is not None
    assert step_of(found) == 2, "not the one before, which was there"


@pytest.mark.usefixtures("network")
def test_one_that_is_gone_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.save(1, stored(1)).rename(tmp_path / "gone")
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="its checkpoints, to step 1, are gone"):
        store.newest_intact()
    assert time.monotonic() - began > 1.5


def test_a_local_disk_shows_what_there_is(tmp_path: Path) -> None:
    began = time.monotonic()
    assert not wait_until_visible(lambda: False, tmp_path, "nothing")
    assert time.monotonic() - began < 1
