"""What a check found, and the table that shows it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

OK, WARNING, FAILED = "OK", "warning", "failed"
EXCLUDE = "exclude the node (sbatch --exclude=NODE), and tell the site"
_WIDTH = 100


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was looked at.
        state: OK, WARNING or FAILED.
        found: what was found.
        fix: what to do about it; empty where nothing has to be done.
    """

    name: str
    state: str
    found: str
    fix: str = ""


def passed(name: str, found: str) -> Check:
    """A check that found nothing to fix."""
    return Check(name, OK, found)


def table(checks: Sequence[Check]) -> list[str]:
    """Aligned lines: state, name, what was found, and below it how to fix it."""
    name = max((len(check.name) for check in checks), default=0)
    margin = " " * (name + 11)
    lines = []
    for check in checks:
        body = textwrap.wrap(check.found, _WIDTH) or [""]
        lines.append(f"{check.state:<9}{check.name:<{name}}  {body[0]}")
        lines += [margin + line for line in body[1:]]
        lines += [margin + line for line in textwrap.wrap(f"-> {check.fix}", _WIDTH) if check.fix]
    return lines


def summary(checks: Sequence[Check]) -> str:
    """How many of each."""
    count = {state: sum(check.state == state for check in checks) for state in (OK, WARNING, FAILED)}
    return f"{count[OK]} OK, {count[WARNING]} warning(s), {count[FAILED]} failed"


def failures(checks: Sequence[Check]) -> list[Check]:
    """Those that training would not survive."""
    return [check for check in checks if check.state == FAILED]
