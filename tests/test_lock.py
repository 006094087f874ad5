"""requirements.lock: the same packages and versions as constraints.txt, each with hashes."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def test_every_constraint_is_locked_with_hashes() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    blocks = re.split(r"\n(?! )", (ROOT / "requirements.lock").read_text().rstrip("\n"))
    assert [block.splitlines()[0].removesuffix(" \\") for block in blocks] == constraints, "make lock"
    for block in blocks:
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?: \\)?$", block, re.MULTILINE)
        assert len(hashes) == len(block.splitlines()) - 1 > 0


def test_whatever_a_locked_package_requires_is_locked() -> None:
    """Nothing is resolved when the lock is installed; `pip freeze` leaves setuptools out, which torch requires."""
    names = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    locked = {plain(name) for name in names}
    for name in names:
        try:
            required = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue  # of another platform
        for text in required:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert plain(wanted.name) in locked, f"{name} requires {text}"


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
