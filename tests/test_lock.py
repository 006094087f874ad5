"""requirements.lock: the same packages and versions as constraints.txt, each with hashes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_constraint_is_locked_with_hashes() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    blocks = re.split(r"\n(?! )", (ROOT / "requirements.lock").read_text().rstrip("\n"))
    assert [block.splitlines()[0].removesuffix(" \\") for block in blocks] == constraints, "make lock"
    for block in blocks:
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?: \\)?$", block, re.MULTILINE)
        assert len(hashes) == len(block.splitlines()) - 1 > 0
