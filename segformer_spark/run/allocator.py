"""Let the C library keep freed memory: a training step on a CPU frees and allocates the same maps again and again.

glibc hands blocks above 32 MiB straight back to the kernel, which then has to fault in and clear every page of the next
map: a third of the time of an unmodified SegFormer's step. Kept memory costs nothing more at the peak.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3)."""

_KEEP_ALL = 2**31 - 1


def keep_freed_memory() -> bool:
    """Serve all blocks from one heap that does not shrink; False where the C library has no mallopt.

    Call before threads start. Loader processes that are forked later inherit it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEEP_ALL}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
