from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.distributed.environment import Launch, detect_launch, first_host
from segformer_spark.errors import UserError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_NODELIST": "gpu[003-005,9]",
}


def test_alone() -> None:
    assert detect_launch({"PATH": "/bin"}) == Launch("single", 0, 1, 0, 1, None)


def test_torchrun() -> None:
    assert detect_launch(TORCHRUN) == Launch("torchrun", 5, 8, 1, 4, ("node1", 29400))


def test_torchrun_inside_a_slurm_job() -> None:
    assert detect_launch({**SLURM, **TORCHRUN}).launcher == "torchrun"


def test_srun() -> None:
    launch = detect_launch(SLURM)
    assert (launch.launcher, launch.rank, launch.world_size) == ("slurm", 6, 7)
    assert (launch.local_rank, launch.local_world_size) == (0, 1)
    assert detect_launch({**SLURM, "SLURM_NODEID": "0"}).local_world_size == 2
    assert launch.master is not None
    assert launch.master[0] == "gpu003"
    assert 1024 < launch.master[1] < 65536


def test_two_jobs_have_two_ports() -> None:
    ports = {detect_launch({**SLURM, "SLURM_JOB_ID": str(job)}).master for job in range(1000, 1200)}
    assert len(ports) == 200


def test_an_interactive_allocation_is_one_process() -> None:
    environment = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert detect_launch(environment).world_size == 1


def test_one_task_needs_no_rendezvous() -> None:
    assert detect_launch({**SLURM, "SLURM_NTASKS": "1"}).launcher == "single"


@pytest.mark.parametrize("broken", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_incomplete_variables_are_named(broken: str) -> None:
    environment = {name: value for name, value in TORCHRUN.items() if name != broken}
    with pytest.raises(UserError, match=broken):
        detect_launch(environment)
    with pytest.raises(UserError, match="is not a number"):
        detect_launch({**TORCHRUN, broken: "x"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node7", "node7"),
        ("node[1-4]", "node1"),
        ("node[08,11-12],other3", "node08"),
        ("a1,b2", "a1"),
        ("mel2013.cluster", "mel2013.cluster"),
        ("iris-[1-2]-gpu", "iris-1-gpu"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@given(st.text(max_size=20))
def test_any_node_list_is_a_safe_host_or_an_error(text: str) -> None:
    try:
        host = first_host(text)
    except UserError:
        return
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in host)
