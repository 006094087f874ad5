from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from segformer_spark.distributed import job_store, rendezvous
from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.ports import unused_port
from segformer_spark.distributed.rendezvous import Meeting, meet
from segformer_spark.distributed.waiting import Wait
from segformer_spark.errors import PeersNotFound, PortTaken, UserError

ROOT = Path(__file__).parents[2]


def launch(rank: int, world: int, ports: tuple[int, ...], token: str = "7.0.0", host: str = "127.0.0.1") -> Launch:
    return Launch("test", rank, world, rank, world, (host, ports[0]), ports[1:], token)


def outcomes(*ranks: Callable[[], Any]) -> list[Any]:
    """What each call returned, or raised; all run at once."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(outcome, ranks))


def meet_all(world: int, ports: tuple[int, ...], limit: float = 30.0, **fields: Any) -> list[Any]:
    return outcomes(*(lambda rank=rank: meet(launch(rank, world, ports, **fields), limit) for rank in range(world)))


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Something else that listens at a port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_have_one_store_of_one_attempt(world: int) -> None:
    meetings: list[Meeting] = meet_all(world, (unused_port(),))
    assert len({meeting.name for meeting in meetings}) == 1
    assert meetings[0].hosts == [socket.gethostname()] * world
    meetings[0].store.set("word", "heard")
    assert all(meeting.store.get("word") == b"heard" for meeting in meetings)


def test_where_a_port_is_taken_all_try_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "_HANDSHAKE", timedelta(seconds=0.5))
    ports = tuple(unused_port() for _ in range(3))
    another_job = dist.TCPStore("127.0.0.1", ports[1], None, True, wait_for_workers=False)
    another_job.set("segformer_spark/8.0.0/open", "1")
    with stranger(ports[0]):
        meetings = meet_all(3, ports)
    assert [meeting.address for meeting in meetings] == [("127.0.0.1", ports[2])] * 3


def test_a_given_port_that_is_taken_ends_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "_HANDSHAKE", timedelta(seconds=0.5))
    monkeypatch.setattr(job_store, "_FOREIGN_SECONDS", 0.5)
    port = unused_port()
    with stranger(port):
        for rank, error in enumerate(meet_all(2, (port,))):
            assert type(error) is PortTaken
            assert f"[rank {rank} on {socket.gethostname()}] port {port} is in use on 127.0.0.1" in str(error)
            assert "Leave MASTER_PORT out" in str(error)


def test_ranks_that_are_missing_are_named() -> None:
    ports = (unused_port(),)
    first, second = outcomes(*(lambda rank=rank: meet(launch(rank, 4, ports), 1.0) for rank in (0, 2)))
    assert type(first) is type(second) is PeersNotFound
    assert f"[rank 0 on {socket.gethostname()}]" in str(first)
    assert "ranks 1, 3 did not come within 1 s" in str(first)
    assert "other ranks, for which rank 0 waits" in str(second)
    port = unused_port()
    (alone,) = outcomes(lambda: meet(launch(1, 2, (port,)), 0.5))
    assert f"rank 0 on 127.0.0.1, port {port} did not come" in str(alone)


def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("segformer_spark.distributed.waiting._SAY_EVERY", 0.2)
    with caplog.at_level("WARNING", "segformer_spark"):
        outcomes(lambda: meet(launch(0, 2, (unused_port(),)), 0.7))
    assert "waiting for rank 1, since 0 s" in caplog.text


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "_RESOLVE_SECONDS", 0.2)
    (error,) = outcomes(lambda: meet(launch(1, 2, (1,), host="gpu003.invalid"), 30))
    assert type(error) is UserError
    assert "the name of the first node, gpu003.invalid, does not resolve here" in str(error)
    assert "Set MASTER_ADDR" in str(error)


def test_rank_0_that_dies_is_noticed() -> None:
    """It came, and is gone before all others did."""
    port = unused_port()
    program = f"""
        from segformer_spark.distributed.environment import Launch
        from segformer_spark.distributed.rendezvous import meet
        meet(Launch("test", 0, 3, 0, 3, ("127.0.0.1", {port}), (), "7.0.0"), 60)
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stderr=subprocess.DEVNULL)
    found: list[Any] = []
    second = threading.Thread(target=lambda: found.extend(outcomes(lambda: meet(launch(1, 3, (port,)), 60))))
    second.start()
    store = job_store._store_of_this_job
    while store(launch(1, 3, (port,)), port) is None:
        time.sleep(0.1)
    time.sleep(0.3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(10) == -signal.SIGTERM, "a signal ends the wait at once"
    second.join(30)
    assert "rank 0 or the network to it is gone" in str(found[0])


def attempts(root: Any, world: int, before: Callable[[int], None] = lambda rank: None) -> list[Any]:
    """One attempt of all ranks over a store that already lives."""

    def one(rank: int) -> Any:
        before(rank)
        wait = Wait(launch(rank, world, (1,)), time.monotonic() + 20)
        own = rendezvous._Greeting(os.urandom(4).hex(), "host", "10.0.0.1", "10.0.0.1", {})
        root.set(rendezvous._greeting_key(rank), rendezvous.json.dumps(rendezvous.asdict(own)))
        attempt = rendezvous._lead(root, wait, own) if rank == 0 else rendezvous._follow(root, wait, own)
        assert attempt.greetings[rank] == own
        return attempt

    return outcomes(*(lambda rank=rank: one(rank) for rank in range(world)))


@pytest.mark.parametrize("late", [*(pytest.param(rank, marks=pytest.mark.sweep) for rank in (0, 1)), 2])
def test_a_store_that_outlives_an_attempt_shows_nobody_the_dead(late: int) -> None:
    """torchrun restarts all ranks over the store of its agent; one comes late and finds what the dead left."""
    root = PrefixStore("job", dist.HashStore())
    names = []
    for _ in range(3):
        found = attempts(root, 3, lambda rank: time.sleep(0.3 * (rank == late)))
        (name,) = {attempt.name for attempt in found}
        names.append(name)
    assert len(set(names)) == 3


def test_torchrun_restarts_a_job(tmp_path: Path) -> None:
    """Rank 1 fails in the first attempt; the second one sums over both ranks."""
    program = tmp_path / "ranks.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, sys, pathlib, torch
            from segformer_spark.distributed.environment import detect_launch
            from segformer_spark.distributed.process_group import process_group
            launch = detect_launch(os.environ)
            with process_group(launch, torch.device("cpu"), 2.0, 30.0) as group:
                attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
                total = int(group.sum(torch.tensor([launch.rank + 1])))
                pathlib.Path({str(tmp_path)!r}, f"{{attempt}}-{{launch.rank}}").write_text(str(total))
                group.barrier()
                if attempt == 0 and launch.rank == 1:
                    os._exit(3)
                group.barrier()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--standalone", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix == ""}
    assert found == {"0-0": "3", "0-1": "3", "1-0": "3", "1-1": "3"}


def test_another_token_is_another_job() -> None:
    port = unused_port()
    other = replace(launch(1, 2, (port,)), token="8.0.0")
    first, second, stray = outcomes(
        lambda: meet(launch(0, 2, (port,)), 20), lambda: meet(launch(1, 2, (port,)), 20), lambda: meet(other, 1.0)
    )
    assert first.name == second.name
    assert type(stray) is PeersNotFound
