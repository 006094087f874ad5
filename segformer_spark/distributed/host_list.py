"""SLURM's host lists, as `scontrol show hostnames` reads them: `gpu[003-005,9],rack[0-1]_blade[0-1],login1`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from segformer_spark.errors import UserError

_MOST_HOSTS = 65_536
_ENTRY = re.compile(r"(?:[A-Za-z0-9._-]|\[[0-9,-]+\])+")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def expand_hosts(hosts: str) -> list[str]:
    """The hosts of a list, in its order. Of several brackets in a name the last one changes fastest.

    Numbers keep their zeros: `n[08-11]` is n08, n09, n10, n11.

    Raises:
        UserError: it is not a host list.
    """
    names: list[str] = []
    position = 0
    while True:
        match = _ENTRY.match(hosts, position)
        if match is None:
            raise _unknown(hosts)
        parts = re.split(r"\[([^\[\]]*)\]", match[0])
        choices = [[text] if index % 2 == 0 else list(_numbers(text, hosts)) for index, text in enumerate(parts)]
        names += itertools.islice(map("".join, itertools.product(*choices)), _MOST_HOSTS)
        position = match.end()
        if position == len(hosts):
            return names
        if hosts[position] != ",":
            raise _unknown(hosts)
        position += 1


def _numbers(text: str, hosts: str) -> Iterator[str]:
    """`003-005,9` -> 003, 004, 005, 9."""
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _unknown(hosts)
        first, last = match[1], match[2] or match[1]
        if not int(first) <= int(last) < int(first) + _MOST_HOSTS:
            raise _unknown(hosts)
        yield from (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))


def _unknown(hosts: str) -> UserError:
    return UserError(f"{hosts!r} is not a list of hosts as SLURM writes them, such as gpu[003-005,9],login1")
