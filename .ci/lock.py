"""Writes requirements.lock: constraints.txt with the sha256 of every file of each version, for all platforms.

    python .ci/lock.py constraints.txt requirements.lock

Asks the package index that pip is configured for (simple API, PEP 691).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path


def index() -> str:
    """The address of pip's package index."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    if asked.returncode == 0:
        return asked.stdout.strip().rstrip("/")
    from pip._internal.models.index import PyPI

    return str(PyPI.simple_url).rstrip("/")


def hashes(address: str, name: str, version: str) -> list[str]:
    """The sha256 of every file of a version, sorted."""
    plain = re.sub(r"[-_.]+", "-", name).lower()
    headers = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/{plain}/", headers=headers), timeout=60) as answer:
        files = json.load(answer)["files"]
    of_name = re.escape(plain).replace(r"\-", "[-_.]+")
    pattern = re.compile(rf"{of_name}-{re.escape(version)}(-.*\.whl|\.tar\.(gz|bz2|xz)|\.zip)", re.IGNORECASE)
    found = {file["hashes"]["sha256"] for file in files if pattern.fullmatch(file["filename"])}
    if not found:
        raise SystemExit(f"{name}=={version}: the index has no file of it")
    return sorted(found)


def main() -> None:
    """Read, ask, write."""
    constraints, lock = map(Path, sys.argv[1:])
    address, lines = index(), []
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        known = hashes(address, name, version)
        lines.append(" \\\n".join([line, *(f"    --hash=sha256:{value}" for value in known)]))
    lock.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
