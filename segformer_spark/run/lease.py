"""The lease of a folder: one attempt at a time has the right to write into it.

    0003.json    who holds the lease (job, restart, host, process), from which step; "ended" when released
    0003.alive   a counter that the owner moves on every few seconds
    latest       the number of the newest attempt

These lie in attempts/ of a run directory, and in .lease/ of a folder of results.

A job that was requeued takes the run over from its own earlier attempt, which may still live on a node that SLURM lost
sight of. From then on the earlier attempt's writes are refused (fencing: Kleppmann 2016, "How to do distributed
locking"). Any other job, or a second process, is refused while the owner gives heartbeats. Counters are watched and
clocks are not compared, so that nodes whose clocks differ agree.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from segformer_spark.errors import DataError, RunTakenOver, UserError
from segformer_spark.files.atomic import guarded, write_error, write_json, write_text
from segformer_spark.files.checksums import LEASE
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.regular_file import read_regular
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.job_variables import GENERATION
from segformer_spark.run.system import now

_HEARTBEAT_SECONDS = 3.0
_WATCH_SECONDS = 15.0


@dataclass(frozen=True)
class Owner:
    """A process that holds or wants a run.

    Attributes:
        job, restart: SLURM's job id and restart count; None and 0 outside of SLURM.
        generation: how often the job's ranks were restarted in place since.
        host, pid, pid_started: the process; `pid_namespace` tells containers on one host apart.
    """

    job: str | None
    restart: int
    host: str
    pid: int
    pid_started: float
    pid_namespace: str
    generation: int = 0

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> Owner:
        """This process."""
        job = environment.get("SLURM_JOB_ID")
        return cls(
            job=job,
            restart=restart_count(environment) if job else 0,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            pid_namespace=_pid_namespace(),
            generation=_count(environment, GENERATION),
        )

    def describe(self) -> str:
        """For messages."""
        job = f"job {self.job}" if self.job else f"process {self.pid}"
        return f"{job} on {self.host}"

    def supersedes(self, other: Owner) -> bool:
        """Whether this is a later attempt of the same job."""
        own, others = (self.restart, self.generation), (other.restart, other.generation)
        return self.job is not None and self.job == other.job and own > others

    @property
    def is_first(self) -> bool:
        """Whether this is the first attempt of its job."""
        return self.restart == self.generation == 0


def restart_count(environment: Mapping[str, str]) -> int:
    """How often SLURM has requeued this job.

    Raises:
        UserError: SLURM_RESTART_COUNT is no number.
    """
    return _count(environment, "SLURM_RESTART_COUNT")


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or "0"
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise UserError(f"{name}={text!r} is not a number", "Unset it, or submit the job anew.")
    return int(text)


@dataclass(frozen=True)
class _Place:
    """What is leased, where the lease's files lie, and how messages say what its holder does.

    `fix`: what to do when somebody else holds it.
    """

    subject: Path
    folder: Path
    held: str
    fix: str


def _of_run(run: Path) -> _Place:
    fix = "Wait for it or cancel it, or choose another name: experiment.name"
    return _Place(run, RunDirectory(run).attempts, "this run is being trained", fix)


def _of_results(folder: Path) -> _Place:
    return _Place(folder, folder / LEASE, "this folder is being written", "Wait for it, or give another --output")


class Lease:
    """An attempt's hold on a folder.

    Attributes:
        number: of the attempt, from 1 on.
        lost: set when a later attempt has taken the run over; noticed within seconds.
        outcome: how the attempt ended, for the batch script; set before the hold ends.
    """

    def __init__(self, place: _Place, number: int, facts: Mapping[str, Any]) -> None:
        self._place, self.number, self.lost = place, number, False
        self.outcome: str | None = None
        self._facts = dict(facts)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)

    def check(self) -> None:
        """Raise RunTakenOver if a later attempt holds the folder."""
        try:
            _refuse_if_taken_over(self._place, self.number)
        except RunTakenOver:
            self.lost = True
            raise

    def begin(self) -> None:
        """Show heartbeats from now on."""
        self._thread.start()

    def end(self) -> None:
        """Let go."""
        self._done.set()
        self._thread.join()
        try:
            end = {"ended": now(), "outcome": self.outcome}
            write_json(_facts_path(self._place, self.number), {**self._facts, **end})
        except UserError as error:
            logger.warning("%s", error)  # the next attempt finds out by itself

    def _send_heartbeats(self) -> None:
        path, count, warned = _alive_path(self._place, self.number), 0, False
        while True:
            try:
                path.write_text(str(count), encoding="ascii")
                self.check()
            except RunTakenOver:
                return
            except (OSError, UserError) as error:
                if not warned:
                    logger.warning("the heartbeat of this run cannot be written: %s", error)
                warned = True
            count += 1
            if self._done.wait(_HEARTBEAT_SECONDS):
                return


@contextmanager
def lease_run(run: Path, from_step: int, owner: Owner) -> Iterator[Lease]:
    """Hold a run for the duration of the block; every atomic write below it is refused once it is taken over.

    Raises:
        UserError: the run is held by another job or process that is alive.
    """
    with _leased(_of_run(run), owner, {"from_step": from_step}) as lease:
        yield lease


@contextmanager
def lease_results(folder: Path, owner: Owner) -> Iterator[Lease]:
    """The same for a folder of results, which may lie in a run that is being trained."""
    with _leased(_of_results(folder), owner, {}) as lease:
        yield lease


@contextmanager
def follow_results(folder: Path, number: int) -> Iterator[None]:
    """For the other ranks of the process that holds a folder of results by attempt `number`: their writes are refused,
    too, once it is taken over."""
    with guarded(folder, lambda: _refuse_if_taken_over(_of_results(folder), number)):
        yield


@contextmanager
def _leased(place: _Place, owner: Owner, more: Mapping[str, Any]) -> Iterator[Lease]:
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(place.folder, error) from error
    facts = {**asdict(owner), **more, "started": now()}
    before = _newest(place)
    _refuse_if_alive(place, before, owner)
    number = before + 1
    _create_exclusively(place, number, facts)
    write_text(place.folder / "latest", str(number))
    newest = _newest(place)
    if newest > number:
        # A later attempt has announced itself while this one did: its number must stand.
        write_text(place.folder / "latest", str(newest))
    lease = Lease(place, number, facts)
    lease.check()
    lease.begin()
    try:
        with guarded(place.subject, lease.check):
            yield lease
    finally:
        lease.end()


def refuse_if_leased(run: Path, owner: Owner) -> None:
    """Raise UserError if another job or process holds the run and is alive."""
    place = _of_run(run)
    _refuse_if_alive(place, _newest(place), owner)


def _refuse_if_taken_over(place: _Place, number: int) -> None:
    latest = _read_latest(place)
    if latest > number:
        raise RunTakenOver(
            f"{place.subject}: attempt {latest} has taken this over; attempt {number} ({socket.gethostname()}) ends "
            "and writes nothing more"
        )


def _refuse_if_alive(place: _Place, number: int, owner: Owner) -> None:
    if number == 0:
        return
    facts = _read_facts(place, number)
    before = _owner_of(facts)
    if (facts and "ended" in facts) or (before is not None and owner.supersedes(before)):
        return
    if _is_alive(place, number, before, owner):
        who = before.describe() if before is not None else "another process"
        raise UserError(f"{place.subject}: {place.held} at this moment by {who} (attempt {number}). {place.fix}")


def _create_exclusively(place: _Place, number: int, facts: Mapping[str, Any]) -> None:
    """Of two that start at once, one gets the number; whoever sees the file sees all of it."""
    path = _facts_path(place, number)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(facts, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError as error:
        raise UserError(
            f"{place.subject}: another process has begun here at the same moment; start one of them"
        ) from error
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """What is known of each attempt, oldest first; one whose file is damaged is left out."""
    place = _of_run(run)
    return [facts for number in _numbers(place) if (facts := _read_facts(place, number))]


def _read_facts(place: _Place, number: int) -> dict[str, Any]:
    """Empty for a file that cannot be read."""
    try:
        return read_json_object(_facts_path(place, number))
    except DataError:
        return {}


def _owner_of(facts: Mapping[str, Any]) -> Owner | None:
    """Who held the lease; None where the file does not say: then signs of life are watched for."""
    texts, optional = ("host", "pid_namespace"), facts.get("job")
    known = all(isinstance(facts.get(name), str) for name in texts) and isinstance(optional, str | None)
    facts = {"generation": 0, **facts}  # before 0.3 there was none
    numbers = [facts.get(name) for name in ("restart", "pid", "pid_started", "generation")]
    if not known or any(type(number) not in (int, float) for number in numbers) or not 0 < (numbers[1] or 0) < 2**31:
        return None
    return Owner(**{name: facts[name] for name in Owner.__dataclass_fields__})


def _is_alive(place: _Place, number: int, before: Owner | None, owner: Owner) -> bool:
    """Whether that attempt gives heartbeats; `before` None: who it is cannot be read."""
    if before is not None and (before.host, before.pid_namespace) == (owner.host, owner.pid_namespace):
        try:
            started: float = psutil.Process(before.pid).create_time()
            return abs(started - before.pid_started) < 1
        except psutil.NoSuchProcess:
            return False
    logger.info("%s: looking for a heartbeat of attempt %d for %d s", place.subject, number, _WATCH_SECONDS)
    first, deadline = _read_heartbeat(place, number), time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_HEARTBEAT_SECONDS / 4)
        if _read_heartbeat(place, number) != first:
            return True
    return False


def _read_heartbeat(place: _Place, number: int) -> str:
    try:
        return read_regular(_alive_path(place, number), 2**10).decode("ascii", errors="replace")
    except OSError:
        return ""


def _newest(place: _Place) -> int:
    return max(_numbers(place), default=0)


def _numbers(place: _Place) -> list[int]:
    """Of all attempts, in order; copies by hand such as `0003 (1).json` are none."""
    names = (path.name for path in place.folder.glob("*.json"))
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]{4,9}\.json", name))


def _read_latest(place: _Place) -> int:
    """The announced number, in a file: network file systems ask the server when one is opened; a listing may be old."""
    try:
        return int(read_regular(place.folder / "latest", 2**10))
    except FileNotFoundError:
        return 0  # the run was removed: whatever replaces it writes its own
    except (OSError, ValueError) as error:
        raise UserError(f"{place.folder / 'latest'}: cannot be read: {error}") from error


def _facts_path(place: _Place, number: int) -> Path:
    return place.folder / f"{number:04d}.json"


def _alive_path(place: _Place, number: int) -> Path:
    return place.folder / f"{number:04d}.alive"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
