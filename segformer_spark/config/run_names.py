"""Names of runs from the labels of a study: letters, digits, '.', '_' and '-', distinct where the labels are."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_LENGTH = 64
_PLUS = "plus"
_LATIN = dict(zip("ßøØæÆœŒłŁđð", ("ss", "o", "O", "ae", "AE", "oe", "OE", "l", "L", "d", "d"), strict=True))
"""Letters that Unicode does not decompose into ASCII letters."""

_HASH_LENGTH = 6


def slug(label: str) -> str:
    """A label in the characters of a run's name: `+` becomes plus, letters are transliterated, the rest is `_`."""
    text = re.sub(r"\s*\+\s*", lambda match: _plus(match[0]), label)
    text = "".join(_transliterated(letter) for letter in text)
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_")


def former_slug(label: str) -> str:
    """The same as until 0.1, where all other characters became `_`."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", label).strip("_")


def distinct(names: Sequence[str], labels: Sequence[Sequence[str]]) -> list[str]:
    """The names, with a short hash of the labels where several are equal or too long.

    Args:
        labels: what each name was made of.
    """
    counts = Counter(names)
    return [
        name if counts[name] == 1 and len(name) <= MAX_LENGTH else _hashed(name, own)
        for name, own in zip(names, labels, strict=True)
    ]


def _hashed(name: str, labels: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(labels).encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: MAX_LENGTH - _HASH_LENGTH - 1]}-{digest}"


def _plus(match: str) -> str:
    """`DeepLabV3+ R50` -> DeepLabV3plus R50; `+ flip` -> plus flip; `a + b` -> a plus b."""
    before = " " if match[:1].isspace() else ""
    after = " " if match[-1:].isspace() else ""
    return f"{before}{_PLUS}{after}"


def _transliterated(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _LATIN:
        return _LATIN[letter]
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if part.isascii())
    if plain or not letter.isalpha():
        return plain
    # Letters of other scripts by the last word of their Unicode name: CYRILLIC SMALL LETTER ZHE.
    return unicodedata.name(letter, "_").rpartition(" ")[2].rpartition("-")[2].lower()
