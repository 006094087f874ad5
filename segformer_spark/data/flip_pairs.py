"""Classes that stand for two sides: a left-right flip makes one of the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from segformer_spark.errors import ConfigError

FlipPairs = Sequence[tuple[str, str]]

_SIDES = {"left": "right", "right": "left"}
_LETTERS = ({"l", "r"}, {"L", "R"})


def flipped_ids(class_names: Sequence[str], pairs: FlipPairs) -> list[int]:
    """The class id that each class id becomes in a flipped image.

    Raises:
        ConfigError: a name that is no class, a pair of one class, or a class in two pairs.
    """
    ids = list(range(len(class_names)))
    for first, second in pairs:
        for name in (first, second):
            if name not in class_names:
                raise ConfigError(f"data.flip_pairs: {name!r} is no class; there are {', '.join(class_names)}")
        left, right = class_names.index(first), class_names.index(second)
        if left == right or ids[left] != left or ids[right] != right:
            raise ConfigError(f"data.flip_pairs: {first}, {second}: a class has one other class that it becomes")
        ids[left], ids[right] = right, left
    return ids


def sided_names(class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in left and right, or in a single l and r that begins the name or stands apart."""
    found = []
    for index, first in enumerate(class_names):
        exchanged = re.sub("left|right", lambda match: _SIDES[match[0].lower()], first, flags=re.IGNORECASE)
        for second in class_names[index + 1 :]:
            if exchanged.lower() == second.lower() != first.lower() or _one_letter_apart(first, second):
                found.append((first, second))
    return found


def _one_letter_apart(first: str, second: str) -> bool:
    """arm_l and arm_r, armL and armR, larm and rarm; not glass and grass."""
    places = [place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if len(first) != len(second) or len(places) != 1:
        return False
    place = places[0]
    before, after = first[:place][-1:], first[place + 1 :][:1]
    letter = first[place]
    apart = not before.isalpha() or (letter.isupper() and before.islower())
    return {letter, second[place]} in _LETTERS and apart and (place == 0 or not after.islower())


def refuse_unpaired_sides(class_names: Sequence[str], pairs: FlipPairs | None, what: str, without: str) -> None:
    """Raise ConfigError when names imply sides that flips would mix, and nobody has said whether they do.

    Args:
        pairs: `data.flip_pairs`; an empty list says that there are none.
        what: what flips; without: how to do without it.
    """
    sided = sided_names(class_names) if pairs is None else []
    if sided:
        listed = ", ".join(f"[{first}, {second}]" for first, second in sided)
        raise ConfigError(
            f"{what} would take the classes {sided[0][0]} and {sided[0][1]} for each other",
            f"Set data.flip_pairs: [{listed}] to exchange them, [] if they are no sides, or {without}.",
        )
