"""Groups of images that belong together: a spacecraft, a drive, a patient (`--group-by`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from segformer_spark.errors import UserError

GROUP_BY_HELP = (
    "images that belong together: category (their folder), drive (the name without the number at its end), or a "
    "regular expression whose first group, or whole match, is the group's name"
)

_FRAME = re.compile(r"[-_. ]*\d+$")


def group_names(names: Sequence[str], rule: str | None) -> list[str]:
    """The group of each image.

    Args:
        names: of the images without suffix, with folders separated by slashes.
        rule: category, drive or a regular expression; None: every image is a group of its own.

    Raises:
        UserError: the expression is none, or matches not every name; the first is said.
    """
    if rule is None:
        return list(names)
    if rule == "category":
        return [str(PurePosixPath(name).parent) for name in names]
    if rule == "drive":
        return [_FRAME.sub("", name) or name for name in names]
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise UserError(f"--group-by {rule}: neither category nor drive, and no regular expression: {error}") from error
    found = [expression.search(name) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None]
    if without:
        raise UserError(
            f"--group-by {rule}: {len(without)} of {len(names)} names have no match, first {without[0]}",
            "Write an expression that matches every name.",
        )
    return [match[1] if match.re.groups else match[0] for match in found if match is not None]
