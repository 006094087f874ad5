"""Let the C library keep freed memory: a training step on a CPU frees and allocates the same maps again and again.

glibc hands blocks above 32 MiB straight back to the kernel, which then has to fault in and clear every page of the next
map: a third of the time of an unmodified SegFormer's step. Blocks that do not fit again raise the peak at
first, by up to a fifth for transformers' own step, and then no more.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3)."""

_NEVER = -1


def release_freed_memory() -> None:
    """Give what is free back to the kernel, as before measuring; does nothing where the C library cannot."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> bool:
    """Serve all blocks from one heap that does not shrink; False where the C library has no mallopt.

    Call before threads start. Loader processes that are forked later inherit it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
