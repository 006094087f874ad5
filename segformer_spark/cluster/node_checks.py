"""What one node can say about itself before torch is imported: a second, not half a minute."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from segformer_spark import __version__
from segformer_spark.cluster.checks import EXCLUDE, FAILED, WARNING, Check, passed
from segformer_spark.config.load import run_path
from segformer_spark.config.schema import Config
from segformer_spark.data.worker_limits import SHARED_MEMORY, shared_memory_free, sockets_fit
from segformer_spark.distributed.environment import detect_launch
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.models.weights import locate_weights
from segformer_spark.run.system import output_of

_MIB, _GIB = 2**20, 2**30
_COMMAND_SECONDS = 30
_FILES_OF_A_RANK, _FILES_PER_WORKER = 64, 8
_SKEW_WARNING, _SKEW_FAILED = 5.0, 300.0


@functools.cache
def fingerprint() -> str:
    """Python's and every package's version in one word: two nodes that differ must not train together."""
    versions = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    text = "\n".join([platform.python_version(), __version__, *versions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def quick_checks(config: Config, environment: Mapping[str, str], expected: str | None) -> list[Check]:
    """What the training script asks every node first.

    Args:
        expected: fingerprint of the batch host; None does not compare.
    """
    runs = run_path(config).parent
    return [
        check_versions(expected),
        check_gpus(config.hardware.device, environment),
        check_writable("output", runs, "set SAVE_PATH to a folder on storage that all nodes share"),
        check_writable("scratch", scratch_folder(environment), "set SCRATCH_DIR to a folder on scratch storage"),
        check_data(config),
        check_weights(config),
        check_clock(runs),
        check_loader_limits(config),
        check_master(environment),
    ]


def thorough_checks(config: Config, environment: Mapping[str, str]) -> list[Check]:
    """The same, and what takes longer: speed of the storage, quota, time left."""
    runs = run_path(config).parent
    return [
        *quick_checks(config, environment, None),
        check_speed("output", runs),
        check_speed("scratch", scratch_folder(environment)),
        check_quota(runs),
        check_time(environment),
    ]


def scratch_folder(environment: Mapping[str, str]) -> Path:
    """Where the batch scripts put caches; the project's folder where no scratch is named."""
    return Path(environment.get("SCRATCH_DIR") or environment.get("SCRATCH") or ".")


def check_versions(expected: str | None) -> Check:
    """Python and packages against the batch host's."""
    own = fingerprint()
    found = f"Python {platform.python_version()}, segformer_spark {__version__}, fingerprint {own}"
    if expected is not None and own != expected:
        return Check(
            "versions",
            FAILED,
            f"{found}; the batch host has {expected}",
            "let VENV name one environment on storage that all nodes share",
        )
    return passed("versions", found)


def check_gpus(device: str, environment: Mapping[str, str]) -> Check:
    """As many healthy GPUs as SLURM granted, by nvidia-smi."""
    name = "GPUs"
    granted = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    if device == "cpu":
        return passed(name, "not used: hardware.device is cpu")
    query = "name,driver_version,memory.used,ecc.errors.uncorrected.volatile.total"
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    # Where devices are not fenced off, the node's other GPUs are another user's.
    own = [f"--id={visible}"] if re.fullmatch(r"\d+(,\d+)*", visible) else []
    listed = output_of(
        "nvidia-smi", *own, f"--query-gpu={query}", "--format=csv,noheader,nounits", timeout=_COMMAND_SECONDS
    )
    if listed is None:
        if granted == 0 and device == "auto":
            return Check(
                name, WARNING, "none here: this node would compute on the CPU", "none is needed on a login node"
            )
        return Check(
            name,
            FAILED,
            f"SLURM granted {granted} and nvidia-smi finds none",
            "exclude the node (sbatch --exclude=NODE) and tell the site; or set DEVICE=cpu",
        )
    cells = ([cell.strip() for cell in line.split(",")] for line in listed.splitlines())
    rows = [row for row in cells if len(row) == 4]
    found = f"{len(rows)} x {rows[0][0]}, driver {rows[0][1]}" if rows else "none"
    if len(rows) < max(1, granted):
        return Check(name, FAILED, f"{found}; SLURM granted {granted}", EXCLUDE)
    broken = [index for index, row in enumerate(rows) if row[3].isdigit() and int(row[3]) > 0]
    if broken:
        return Check(
            name,
            FAILED,
            f"{found}; uncorrected memory errors on GPU {', '.join(map(str, broken))}",
            EXCLUDE,
        )
    busy = [f"{index} ({row[2]} MiB)" for index, row in enumerate(rows) if row[2].isdigit() and int(row[2]) > 2000]
    if busy:
        return Check(name, WARNING, f"{found}; in use already: GPU {', '.join(busy)}", "ask for --exclusive")
    return passed(name, found)


def check_writable(name: str, folder: Path, fix: str) -> Check:
    """Whether a file can be made below `folder`; the folder itself need not exist yet."""
    try:
        with _probe(folder) as probe:
            probe.write_bytes(b"x")
            free = shutil.disk_usage(probe.parent).free
    except OSError as error:
        return Check(name, FAILED, f"{folder}: cannot be written: {error.strerror}", fix)
    found = f"{folder}: writable, {free / _GIB:.1f} GiB free"
    if free < _GIB:
        return Check(name, FAILED, found, "free space: a checkpoint of B5 alone takes 1 GiB")
    if free < 10 * _GIB:
        return Check(name, WARNING, found, "free space: checkpoints and caches may not fit")
    return passed(name, found)


def check_speed(name: str, folder: Path, size: int = 64 * _MIB) -> Check:
    """Time of writing and fsyncing one file of `size` bytes."""
    block = os.urandom(_MIB)
    try:
        with _probe(folder) as probe:
            started = time.perf_counter()
            with probe.open("wb") as stream:
                for _ in range(size // _MIB):
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
            rate = size / _MIB / (time.perf_counter() - started)
    except OSError as error:
        return Check(f"{name} speed", FAILED, f"{folder}: {error.strerror}", "free space, or ask for quota")
    found = f"{folder}: {rate:.0f} MiB/s written with fsync"
    if rate < 20:
        return Check(f"{name} speed", WARNING, found, "put it on scratch storage: SAVE_PATH, SCRATCH_DIR")
    return passed(f"{name} speed", found)


def check_data(config: Config) -> Check:
    """The data set's folder, or the cache that replaces it."""
    root = Path(config.data.root)
    try:
        next(os.scandir(root), None)
    except OSError as error:
        return Check(
            "data",
            FAILED,
            f"{root}: {error.strerror}",
            "set data.root (with --from-env: DATA_ROOT) to the folder of the data set",
        )
    if config.data.cache is not None and not Path(config.data.cache).is_dir():
        return Check(
            "data", FAILED, f"{config.data.cache}: there is no such cache", "build it: sbatch slurm/prepare_data.sh"
        )
    return passed("data", f"{root}: readable" + (f", cache {config.data.cache}" if config.data.cache else ""))


def check_weights(config: Config) -> Check:
    """Pretrained weights have to be there: compute nodes cannot fetch them."""
    if config.model.pretrained == "none":
        return passed("weights", "none needed: model.pretrained is none")
    try:
        return passed("weights", f"{locate_weights(config.model)}")
    except CheckpointError as error:
        return Check("weights", FAILED, error.problem, error.fix)


def check_clock(folder: Path) -> Check:
    """This node's clock against that of the storage, which all nodes share."""
    try:
        with _probe(folder) as probe:
            probe.write_bytes(b"x")
            skew = abs(probe.stat().st_mtime - time.time())
    except OSError as error:
        return Check("clock", WARNING, f"not compared: {error.strerror}")
    return clock_check("clock", skew, "the storage")


def clock_check(name: str, skew: float, other: str) -> Check:
    """How far a clock may be off: times stand in logs and records only, the time limit is the batch host's."""
    found = f"{skew:.1f} s from {other}"
    if skew > _SKEW_WARNING:
        return Check(name, FAILED if skew > _SKEW_FAILED else WARNING, found, "tell the site: NTP does not run there")
    return passed(name, found)


def check_loader_limits(config: Config) -> Check:
    """What loader processes need: shared memory, open files, a folder for sockets with a short name."""
    name, workers = "loader", config.data.num_workers
    if workers == 0:
        return passed(name, "no loader processes: data.num_workers is 0")
    batch = 4 * math.prod(config.data.input_size) * config.training.batch_size  # RGB and mask, a byte each
    needed, free = 2 * workers * batch, shared_memory_free()  # torch prepares two batches per process
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = (
        f"{workers} processes per rank: {free / _MIB:.0f} MiB free in {SHARED_MEMORY}, {needed / _MIB:.0f} needed; up "
        f"to {'any number of' if files == resource.RLIM_INFINITY else files} open files"
    )
    if free < needed:
        return Check(name, FAILED, found, f"fewer processes (NUM_WORKERS), or a larger {SHARED_MEMORY} (containers)")
    if files != resource.RLIM_INFINITY and files < _FILES_OF_A_RANK + _FILES_PER_WORKER * workers:
        return Check(name, FAILED, found, "ulimit -n: raise the hard limit of open files")
    if not sockets_fit(tempfile.gettempdir()):
        return Check(
            name, WARNING, f"{found}; TMPDIR is too long for sockets, they go to /tmp", "set TMPDIR to a shorter folder"
        )
    return passed(name, found)


def check_master(environment: Mapping[str, str]) -> Check:
    """Where the ranks of this job meet, and whether that name resolves here."""
    name = "meeting point"
    try:
        launch = detect_launch(environment)
    except UserError as error:
        return Check(name, FAILED, error.problem, error.fix)
    if launch.master is None:
        return passed(name, "none: one process alone")
    host, port = launch.master
    source = "MASTER_ADDR" if environment.get("MASTER_ADDR") else "the list of nodes"
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        return Check(
            name,
            FAILED,
            f"{host}, from {source}, does not resolve here: {error.strerror}",
            "set MASTER_ADDR to a name or an address under which all nodes reach it",
        )
    ports = "given by MASTER_PORT" if environment.get("MASTER_PORT") else f"and {len(launch.other_ports)} more"
    return passed(name, f"{host}, from {source}, port {port} {ports}")


def check_quota(folder: Path) -> Check:
    """Use and limit of this user, where `lfs quota` or `quota` says."""
    commands = (("lfs", "quota", "-q", "-u", str(os.getuid()), str(_existing(folder))), ("quota", "-w"))
    for command in commands:
        text = output_of(*command, timeout=_COMMAND_SECONDS)
        for line in (text or "").splitlines():
            found = parse_quota(line)
            if found is not None:
                used, limit = found
                share = f"{used / _MIB:.1f} of {limit / _MIB:.1f} GiB used"
                if used > 0.9 * limit:
                    return Check("quota", WARNING if used < limit else FAILED, share, "free space, or ask for more")
                return passed("quota", share)
    return passed("quota", "none reported for this user")


def parse_quota(line: str) -> tuple[int, int] | None:
    """(used, limit) in KiB from a line of `lfs quota -q` or `quota -w`: file system, used, soft, hard, ...

    Both mark a use above the soft limit with an asterisk, and write 0 for no limit.
    """
    cells = line.split()
    if len(cells) < 4 or not all(cell.rstrip("*").isdigit() for cell in cells[1:4]):
        return None
    used, soft, hard = (int(cell.rstrip("*")) for cell in cells[1:4])
    limit = hard or soft
    return (used, limit) if limit else None


def check_time(environment: Mapping[str, str], now: float | None = None) -> Check:
    """The time that is left to the job."""
    text = environment.get("SLURM_JOB_END_TIME", "")
    if not text.isdigit():
        return passed("time limit", "not in a job" if "SLURM_JOB_ID" not in environment else "SLURM does not say")
    left = int(text) - (time.time() if now is None else now)
    found = f"{left / 60:.0f} min left"
    if left < 600:
        return Check("time limit", WARNING, found, "give the job more: sbatch --time=HH:MM:SS")
    return passed("time limit", found)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A name for a file to try out, in the folder or above it; whatever was written there is removed."""
    path = _existing(folder) / f".probe-{platform.node()}-{os.getpid()}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
