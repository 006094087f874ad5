"""An agent: starts one rank of a job, and again when the coordinator says so, in the same allocation."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from segformer_spark.distributed.environment import first_host, step_token
from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.restart.coordinator import Coordinator, Layout, Message, Verdict
from segformer_spark.restart.link import HEARTBEATS_PER_LIMIT, Link, Server, connect, listen
from segformer_spark.restart.rank import (
    SIGNALS,
    RankProcess,
    adopt_orphans,
    device_type,
    end_orphans,
    end_with_parent,
    warm_up,
)
from segformer_spark.run.job_variables import FAULT, GENERATION

KEY = "JOB_AGENT_KEY"
"""Environment variable: what the batch script drew for this job, and only its processes know."""

_MEETING_SECONDS = 600.0


@dataclass
class Agent:
    """Obeys the coordinator.

    Args:
        arguments: of the command line of a rank.
        limit: seconds of silence after which coordinator and agents take each other for lost; None: never.
        kept: ids of processes of this agent that belong to no rank.
    """

    link: Link
    arguments: Sequence[str]
    limit: float | None
    environment: Mapping[str, str]
    kept: Collection[int] = ()
    _rank: RankProcess | None = None
    _left_with: int | None = None
    _asked_to_stop: bool = False
    _sockets: Sequence[socket.socket] = ()

    def run(self, before: Sequence[Message] = ()) -> int:
        """Until the coordinator says to leave; the status to leave with."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        self._sockets = (self.link.socket, wake, woken)
        # A handler of Python's has to be there for the number to be written to the socket.
        handlers = {number: signal.signal(number, lambda *_: None) for number in (*SIGNALS, signal.SIGCHLD)}
        descriptor = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self.link.socket, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        interval = 1.0 if self.limit is None else self.limit / HEARTBEATS_PER_LIMIT
        beat, heard, looked = 0.0, time.monotonic(), time.monotonic()
        try:
            for message in before:
                self._act(message)
            while self._left_with is None:
                for key, _ in selector.select(min(interval, 1.0)):
                    if key.fileobj is woken:
                        self._pass_on(woken.recv(4096))
                    else:
                        heard = time.monotonic()
                        for message in self.link.receive():
                            self._act(message)
                self._report_end()
                now = time.monotonic()
                if now - looked > 2 * interval + 1:
                    heard = now  # this process itself stood still (suspended by Slurm): the coordinator did, too
                looked = now
                if self.limit is not None and now - heard > self.limit:
                    raise EOFError
                if now - beat > interval:
                    beat = now
                    self.link.send({"alive": 1})
        except (EOFError, OSError) as error:
            _say(f"[{socket.gethostname()}] the coordinator of this job is lost ({error or 'silent'}): this task ends")
            self._end_rank()
            return ExitCode.STOPPED if self._asked_to_stop else ExitCode.PEER_LOST
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.link.close()
        return self._left_with

    def _pass_on(self, numbers: bytes) -> None:
        """Signals that came: the rank is to have them, too."""
        for number in numbers:
            if number in SIGNALS:
                self._asked_to_stop = True
                if self._rank is not None:
                    self._rank.signal(number)
                self.link.send({"stop": number})

    def _act(self, message: Message) -> None:
        what = message.get("do")
        if what == "start":
            self._end_rank()
            self._rank = RankProcess(self.arguments, {**_rank_variables(message, self.environment)}, self._sockets)
        elif what == "kill":
            if self._rank is not None:
                self._rank.kill()
        elif what == "leave":
            self._end_rank()
            self._left_with = int(message["status"])

    def _report_end(self) -> None:
        status = None if self._rank is None else self._rank.status()
        if status is not None:
            self._rank = None
            end_orphans(self.kept)
            self.link.send({"ended": status})

    def _end_rank(self) -> None:
        """Kill the rank and what it started. What waits in the kernel outlives this: Slurm ends it with the step."""
        if self._rank is not None:
            self._rank.kill()
            self._rank.wait(5)
            self._rank = None
            end_orphans(self.kept)


def _rank_variables(message: Message, environment: Mapping[str, str]) -> Mapping[str, str]:
    """What a rank is told; see `detect_launch`."""
    names = {"RANK": "rank", "WORLD_SIZE": "world_size", "LOCAL_RANK": "local_rank"}
    names |= {"LOCAL_WORLD_SIZE": "local_world_size", GENERATION: "generation"}
    variables = {name: str(message[key]) for name, key in names.items()}
    own = environment.get("MASTER_ADDR") if message["is_first_host"] else None  # that of the first host
    variables["MASTER_ADDR"] = own or str(message["master"])
    if message.get("noticed") is not None:
        variables[FAULT] = f"{message['noticed']:.3f} {message['cause']}"
    return variables


def supervise(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    layout: Layout,
    limit: float | None,
    device: str,
    decide: Callable[[int, int], Verdict],
    failed: Callable[[str, str], None],
) -> int:
    """This task's part of a job step whose ranks start again in place; returns the status to leave with.

    Args:
        layout: equal on all tasks.
        device: "cpu", "cuda" or "auto", as configured.
        decide, failed: as `Coordinator`'s; called on the first task.

    Raises:
        UserError: not in a step of the batch scripts, or the other tasks were not found.
    """
    key, token = environment.get(KEY), step_token(environment)
    if not key or "SLURM_PROCID" not in environment:
        raise UserError("job supervise: the batch scripts start this with srun; use train, or torchrun")
    task = int(environment["SLURM_PROCID"])
    warm_up(device_type() if device == "auto" else device)
    child = _fork_coordinator(token, key, layout, limit, decide, failed) if task == 0 else None
    host = environment.get("SLURMD_NODENAME") or socket.gethostname()
    hello = {"task": task, "node": int(environment.get("SLURM_NODEID", "0")), "host": host}
    first = environment.get("MASTER_ADDR") or first_host(environment)
    link, messages = connect(first, token, key, hello, _MEETING_SECONDS)
    adopt_orphans()
    kept = () if child is None else (child,)
    status = Agent(link, arguments, limit, environment, kept).run(messages)
    if child is not None:
        _wait_for(child)
    gc.unfreeze()  # what is frozen at the end is reported as leaked
    return status


def _fork_coordinator(
    token: str,
    key: str,
    layout: Layout,
    limit: float | None,
    decide: Callable[[int, int], Verdict],
    failed: Callable[[str, str], None],
) -> int:
    """A process of its own, so that a rank that starts does not keep the others waiting for answers."""
    listener = listen(token)
    pid = os.fork()
    if pid:
        listener.close()
        return pid
    status = 1
    try:
        end_with_parent()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        coordinator = Coordinator(layout, decide, _say, failed, time.monotonic, time.time)
        Server(listener, key, coordinator, limit).run()
        status = 0
    except Exception:  # noqa: BLE001 - a fork must not return into what its parent was doing
        traceback.print_exc()
    finally:
        os._exit(status)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _wait_for(child: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
