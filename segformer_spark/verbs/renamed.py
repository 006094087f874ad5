"""Options that had another name in 0.1: read through 0.2.x, with one line of notice."""

from __future__ import annotations

import sys
from collections.abc import Sequence

RENAMED_OPTIONS: dict[str, dict[str, str]] = {
    "agreement": {"--people": "--ratings"},
    "data": {"--out": "--output"},
    "bench": {"--pairs": "--rounds", "--without": "--exclude"},
}
"""{verb: {former option: its name now}}."""


def with_current_names(argv: Sequence[str]) -> list[str]:
    """The command line with its options' names of today."""
    former_names = RENAMED_OPTIONS.get(argv[0], {}) if argv else {}
    out = []
    for argument in argv:
        option, equals, value = argument.partition("=")
        if option in former_names:
            print(f"note: {option} is now {former_names[option]}; {option} is read until 0.3", file=sys.stderr)
            option = former_names[option]
        out.append(option + equals + value)
    return out
