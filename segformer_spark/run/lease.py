"""The lease of a run directory: one attempt at a time has the right to write into it.

    attempts/0003.json    who holds the lease (job, restart, host, process), from which step; "ended" when released
    attempts/0003.alive   a counter that the owner moves on every few seconds
    attempts/latest       the number of the newest attempt

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
from segformer_spark.run.atomic import guarded, write_error, write_json, write_text
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.json_file import read_json_object
from segformer_spark.run.system import now

_HEARTBEAT_SECONDS = 3.0
_WATCH_SECONDS = 15.0


@dataclass(frozen=True)
class Owner:
    """A process that holds or wants a run.

    Attributes:
        job, restart: SLURM's job id and restart count; None and 0 outside of SLURM.
        host, pid, pid_started: the process; `pid_namespace` tells containers on one host apart.
    """

    job: str | None
    restart: int
    host: str
    pid: int
    pid_started: float
    pid_namespace: str

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
        )

    def describe(self) -> str:
        """For messages."""
        job = f"job {self.job}" if self.job else f"process {self.pid}"
        return f"{job} on {self.host}"

    def supersedes(self, other: Owner) -> bool:
        """Whether this is a later attempt of the same job."""
        return self.job is not None and self.job == other.job and self.restart > other.restart


def restart_count(environment: Mapping[str, str]) -> int:
    """How often SLURM has requeued this job.

    Raises:
        UserError: SLURM_RESTART_COUNT is no number.
    """
    text = environment.get("SLURM_RESTART_COUNT") or "0"
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise UserError(f"SLURM_RESTART_COUNT={text!r} is not a number", "Unset it, or submit the job anew.")
    return int(text)


class Lease:
    """An attempt's hold on a run.

    Attributes:
        number: of the attempt, from 1 on.
        lost: set when a later attempt has taken the run over; noticed within seconds.
        outcome: how the attempt ended, for the batch script; set before the hold ends.
    """

    def __init__(self, run: Path, number: int, facts: Mapping[str, Any]) -> None:
        self.run, self.number, self.lost = run, number, False
        self.outcome: str | None = None
        self._facts = dict(facts)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)

    def check(self) -> None:
        """Raise RunTakenOver if a later attempt holds the run."""
        latest = _read_latest(self.run)
        if latest > self.number:
            self.lost = True
            raise RunTakenOver(
                f"{self.run}: attempt {latest} has taken this run over; attempt {self.number} "
                f"({socket.gethostname()}) ends and writes nothing more"
            )

    def begin(self) -> None:
        """Show heartbeats from now on."""
        self._thread.start()

    def end(self) -> None:
        """Let go."""
        self._done.set()
        self._thread.join()
        try:
            end = {"ended": now(), "outcome": self.outcome}
            write_json(_facts_path(self.run, self.number), {**self._facts, **end})
        except UserError as error:
            logger.warning("%s", error)  # the next attempt finds out by itself

    def _send_heartbeats(self) -> None:
        path, count, warned = _alive_path(self.run, self.number), 0, False
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
    folder = RunDirectory(run).attempts
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**asdict(owner), "from_step": from_step, "started": now()}
    before = _newest(run)
    _refuse_if_alive(run, before, owner)
    number = before + 1
    _create_exclusively(run, number, facts)
    write_text(folder / "latest", str(number))
    newest = _newest(run)
    if newest > number:
        # A later attempt has announced itself while this one did: its number must stand.
        write_text(folder / "latest", str(newest))
    lease = Lease(run, number, facts)
    lease.check()
    lease.begin()
    try:
        with guarded(run, lease.check):
            yield lease
    finally:
        lease.end()


def refuse_if_leased(run: Path, owner: Owner) -> None:
    """Raise UserError if another job or process holds the run and is alive."""
    _refuse_if_alive(run, _newest(run), owner)


def _refuse_if_alive(run: Path, number: int, owner: Owner) -> None:
    if number == 0:
        return
    facts = _read_facts(run, number)
    before = _owner_of(facts)
    if (facts and "ended" in facts) or (before is not None and owner.supersedes(before)):
        return
    if _is_alive(run, number, before, owner):
        who = before.describe() if before is not None else "another process"
        raise UserError(
            f"{run}: this run is being trained at this moment by {who} (attempt {number}). "
            "Wait for it or cancel it, or choose another name: experiment.name"
        )


def _create_exclusively(run: Path, number: int, facts: Mapping[str, Any]) -> None:
    """Of two that start at once, one gets the number; whoever sees the file sees all of it."""
    path = _facts_path(run, number)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(facts, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError as error:
        raise UserError(f"{run}: another process has begun this run at the same moment; start one of them") from error
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """What is known of each attempt, oldest first; one whose file is damaged is left out."""
    return [facts for number in _numbers(run) if (facts := _read_facts(run, number))]


def _read_facts(run: Path, number: int) -> dict[str, Any]:
    """Empty for a file that cannot be read."""
    try:
        return read_json_object(_facts_path(run, number))
    except DataError:
        return {}


def _owner_of(facts: Mapping[str, Any]) -> Owner | None:
    """Who held the lease; None where the file does not say: then signs of life are watched for."""
    texts, optional = ("host", "pid_namespace"), facts.get("job")
    known = all(isinstance(facts.get(name), str) for name in texts) and isinstance(optional, str | None)
    numbers = [facts.get(name) for name in ("restart", "pid", "pid_started")]
    if not known or any(type(number) not in (int, float) for number in numbers) or not 0 < (numbers[1] or 0) < 2**31:
        return None
    return Owner(**{name: facts[name] for name in Owner.__dataclass_fields__})


def _is_alive(run: Path, number: int, before: Owner | None, owner: Owner) -> bool:
    """Whether that attempt gives heartbeats; `before` None: who it is cannot be read."""
    if before is not None and (before.host, before.pid_namespace) == (owner.host, owner.pid_namespace):
        try:
            started: float = psutil.Process(before.pid).create_time()
            return abs(started - before.pid_started) < 1
        except psutil.NoSuchProcess:
            return False
    logger.info("%s: looking for a heartbeat of attempt %d for %d s", run, number, _WATCH_SECONDS)
    first, deadline = _read_heartbeat(run, number), time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_HEARTBEAT_SECONDS / 4)
        if _read_heartbeat(run, number) != first:
            return True
    return False


def _read_heartbeat(run: Path, number: int) -> str:
    try:
        return _alive_path(run, number).read_text(encoding="ascii")
    except OSError:
        return ""


def _newest(run: Path) -> int:
    return max(_numbers(run), default=0)


def _numbers(run: Path) -> list[int]:
    """Of all attempts, in order; copies by hand such as `0003 (1).json` are none."""
    names = (path.name for path in RunDirectory(run).attempts.glob("*.json"))
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]{4,9}\.json", name))


def _read_latest(run: Path) -> int:
    """The announced number, in a file: network file systems ask the server when one is opened; a listing may be old."""
    try:
        return int((RunDirectory(run).attempts / "latest").read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0  # the run was removed: whatever replaces it writes its own
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: attempts/latest cannot be read: {error}") from error


def _facts_path(run: Path, number: int) -> Path:
    return RunDirectory(run).attempts / f"{number:04d}.json"


def _alive_path(run: Path, number: int) -> Path:
    return RunDirectory(run).attempts / f"{number:04d}.alive"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
