"""What a collective raises when another rank is gone."""

from __future__ import annotations

import re

_GLOO = re.compile(r"gloo.*(Connection reset|Connection closed|Broken pipe|pair closure)", re.DOTALL)
_NCCL = re.compile(r"NCCL.*(remote process exited|Connection reset|Connection closed)", re.DOTALL)


def broken_connection(error: BaseException) -> str | None:
    """One line of why, where an error of torch.distributed says that another rank is gone; None for other errors."""
    text = str(error)
    if not isinstance(error, RuntimeError):
        return None
    found = _GLOO.search(text) or _NCCL.search(text)
    return None if found is None else found[1]
