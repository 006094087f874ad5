"""How ranks on several nodes find each other, or say why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.distributed.host_list import expand_hosts
from segformer_spark.exit_codes import ExitCode
from tests.slurm.cluster import Cluster

# Joins the ranks of the step and sums over them. TAKE: another process listens at the first port of node1.
PROGRAM = """
import os, socket, sys, time
from datetime import timedelta
import torch
from segformer_spark.cli import main
from segformer_spark.distributed.environment import detect_launch
from segformer_spark.distributed.process_group import process_group
from segformer_spark.run.console import setup_logging
from segformer_spark.verbs import runs

def act(arguments):
    launch = detect_launch(os.environ)
    setup_logging(launch.rank, launch.world_size)
    if launch.rank == 0 and "TAKE" in os.environ:
        taken = socket.socket()
        taken.bind(("", launch.master[1]))
        taken.listen()
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(30)
            os._exit(0)
    from segformer_spark.distributed import job_store
    job_store._FOREIGN_SECONDS, job_store._HANDSHAKE = 1, timedelta(seconds=1)
    with process_group(launch, torch.device("cpu"), 1.0, 30.0) as group:
        total = int(group.sum(torch.tensor([launch.rank + 1])))
        print(f"rank {launch.rank} on {socket.gethostname()}: {total} by {os.environ.get('GLOO_SOCKET_IFNAME')}")
    return 0

runs.runs = act
main(["runs"])
"""
TWO = ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=node[1-2]", "--kill-on-bad-exit=1")


def meet(cluster: Cluster, *options: str, **environment: str) -> tuple[int, str]:
    """Status and output of a step of two ranks on two nodes."""
    command = ["srun", *(options or TWO), sys.executable, "-c", PROGRAM]
    env = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = cluster.login(*command, env=env, cwd=PROJECT_ROOT, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "hosts",
    [
        "node[1-4]",
        "rack[0-1]_blade[0-1]",
        "rack[1-2]-node[03-04],login1",
        "gpu[003-005,9],a,b[1]",
        "n[098-101]",
    ],
)
def test_host_lists_are_read_as_scontrol_reads_them(cluster: Cluster, hosts: str) -> None:
    assert expand_hosts(hosts) == cluster.login("scontrol", "show", "hostnames", hosts).stdout.split()


@pytest.fixture
def debian_hosts(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """Each node has its own name as 127.0.1.1, as Debian's installer writes it."""
    known = (cluster.base / "etc" / "hosts").read_text()
    for name in cluster.names[:2]:
        own = tmp_path / f"hosts-{name}"
        lines = [line for line in known.splitlines() if line.split()[1:] != [name]]
        own.write_text("\n".join([f"127.0.1.1 {name}", *lines]) + "\n")
        cluster.on(name, "mount", "--bind", str(own), "/etc/hosts")
    yield
    for name in cluster.names[:2]:
        cluster.on(name, "umount", "/etc/hosts")


@pytest.mark.usefixtures("debian_hosts")
def test_nodes_that_know_themselves_as_127_0_1_1(cluster: Cluster) -> None:
    status, said = meet(cluster)
    assert status == 0, said
    assert "rank 0 on node1: 3 by eth0" in said
    assert "rank 1 on node2: 3 by eth0" in said


def test_a_taken_port_is_passed_over_by_all_ranks(cluster: Cluster) -> None:
    status, said = meet(cluster, TAKE="1")
    assert status == 0, said
    assert "[rank 0 on node1] port" in said
    assert "rank 1 on node2: 3" in said


def test_a_given_port_that_is_taken_is_a_status_of_its_own(cluster: Cluster) -> None:
    status, said = meet(cluster, *[one for one in TWO if "kill" not in one], TAKE="1", MASTER_PORT="17171")
    assert status == ExitCode.PORT_TAKEN
    for rank, host in enumerate(("node1", "node2")):
        assert f"[rank {rank} on {host}] port 17171 is in use on node1 by something else" in said


def test_a_name_that_does_not_resolve_and_an_address_that_does(cluster: Cluster) -> None:
    address = cluster.on("node1", "hostname", "-i").split()[0] or "node1"
    status, said = meet(cluster, MASTER_ADDR=address)
    assert status == 0, said


def test_an_interactive_step_is_one_process(cluster: Cluster) -> None:
    """`srun --pty bash` in an allocation of two tasks; `script` gives it a terminal."""
    program = "import os; from segformer_spark.distributed.environment import detect_launch as d; print(d(os.environ))"
    inner = f"{sys.executable} -c '{program}'"
    done = cluster.login(
        *("script", "-qec", f'srun --ntasks=2 --pty sh -c "{inner}"', "/dev/null"),
        env={"PYTHONPATH": str(PROJECT_ROOT)},
        cwd=PROJECT_ROOT,
        check=False,
    )
    assert "launcher='single', rank=0, world_size=1" in done.stdout, done.stdout
    assert "this is an interactive step of 2 tasks" in done.stdout
