"""What loader processes need of the system: open files, sockets with short names, shared memory."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile

from segformer_spark.run.console import logger

SHARED_MEMORY = "/dev/shm"
_SOCKET_NAME = 108
"""Bytes that Linux has for the name of a Unix socket (unix(7))."""

_SOCKET_TAIL = len("/pymp-xxxxxxxx/listener-xxxxxxxx") + 1
_ENOUGH_FILES = 65_536


def prepare_limits() -> None:
    """Raise the limit of open files as far as this user may, and take a short folder for sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if not sockets_fit(tempfile.gettempdir()) and os.access("/tmp", os.W_OK):
        logger.info("TMPDIR is too long for the names of sockets: those of loader processes go to /tmp")
        tempfile.tempdir = "/tmp"


def sockets_fit(folder: str) -> bool:
    """Whether multiprocessing's sockets can lie in this folder."""
    return len(os.fsencode(folder)) + _SOCKET_TAIL <= _SOCKET_NAME


def shared_memory_free() -> int:
    """Free bytes of /dev/shm, through which batches travel."""
    return shutil.disk_usage(SHARED_MEMORY).free
