"""Files with one byte changed, one after another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path


def edited_bytes(files: Sequence[Path], number: int) -> Iterator[str]:
    """Change one byte of one file, `number` times; each is as before when the next one is asked for.

    Yields:
        What was changed, for messages.
    """
    rng = random.Random(0)
    for turn in range(number):
        path = files[turn % len(files)]
        content = path.read_bytes()
        place = rng.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :])
        yield f"byte {place} of {path.name}"
        path.write_bytes(content)
