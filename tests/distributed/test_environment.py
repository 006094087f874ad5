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
    found = [detect_launch({**SLURM, "SLURM_JOB_ID": str(job)}) for job in range(1000, 1200)]
    assert len({(launch.master, *launch.other_ports) for launch in found}) == 200
    assert len({launch.token for launch in found}) == 200


def test_all_ranks_try_the_same_ports_and_another_step_or_attempt_others() -> None:
    def ports(**changes: str) -> tuple[int, ...]:
        launch = detect_launch({**SLURM, **changes})
        assert launch.master is not None
        return launch.master[1], *launch.other_ports

    own = ports()
    assert len(set(own)) == 8
    assert all(15000 <= port < 32000 for port in own)
    assert ports(SLURM_PROCID="0", SLURM_NODEID="0") == own
    assert ports(SLURM_STEP_ID="1") != own != ports(SLURM_RESTART_COUNT="1")
    assert ports(MASTER_PORT="23456") == (23456,)


def test_a_given_address_is_taken_under_srun_too() -> None:
    launch = detect_launch({**SLURM, "MASTER_ADDR": "10.1.2.3"})
    assert launch.master is not None
    assert launch.master[0] == "10.1.2.3"


@pytest.mark.parametrize("stale", [{"RANK": "0"}, {"WORLD_SIZE": "4"}, {"LOCAL_RANK": "3"}])
def test_variables_that_contradict_slurm_are_named(stale: dict[str, str]) -> None:
    ((name, value),) = stale.items()
    with pytest.raises(UserError, match=rf"contradict each other: {name}={value}, SLURM_.*Unset {name}"):
        detect_launch({**SLURM, **stale})
    whole = {"RANK": "0", "WORLD_SIZE": "7", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match="contradict"):
        detect_launch({**SLURM, **whole})
    assert detect_launch({**SLURM, **whole, "RANK": "6"}).launcher == "slurm", "what a wrapper set to SLURM's values"


def test_an_interactive_step_is_one_process() -> None:
    """`salloc -n2; srun --pty bash`"""
    launch = detect_launch({**SLURM, "SLURM_PTY_PORT": "40001"})
    assert (launch.launcher, launch.world_size) == ("single", 1)
    assert "srun --overlap" in launch.notice


def test_an_interactive_allocation_is_one_process() -> None:
    environment = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert detect_launch(environment).world_size == 1


def test_one_task_needs_no_rendezvous() -> None:
    assert detect_launch({**SLURM, "SLURM_NTASKS": "1"}).launcher == "single"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1' is not a number"),
        ({"WORLD_SIZE": "0"}, "the number of processes is 0"),
        ({"WORLD_SIZE": "٨"}, "is not a number"),
        ({"WORLD_SIZE": "8.0"}, "is not a number"),
        ({"WORLD_SIZE": " 8"}, "is not a number"),
        ({"WORLD_SIZE": "9" * 40}, "is not a number"),
        ({"RANK": "8"}, "rank 8 is none of 8 processes"),
        ({"LOCAL_RANK": "4"}, "local rank 4 is none of 4 on this node"),
        ({"LOCAL_WORLD_SIZE": "9"}, "9 processes on this node, 8 in all"),
        ({"MASTER_PORT": "0"}, "port 0 is none"),
        ({"MASTER_PORT": "99999"}, "port 99999 is none"),
    ],
)
def test_numbers_that_no_launcher_sets(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        detect_launch({**TORCHRUN, **changes})
    assert message in str(error.value)


def test_a_node_list_of_billions_takes_no_memory() -> None:
    with pytest.raises(UserError, match=r"local rank|processes on this node"):
        detect_launch({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "999999999(x999999999)"})


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
    assert first_host({"SLURM_JOB_NODELIST": nodes}) == host
    assert first_host({"SLURM_JOB_NODELIST": "other", "SLURM_STEP_NODELIST": nodes}) == host


@given(st.text(max_size=20))
def test_any_node_list_is_a_safe_host_or_an_error(text: str) -> None:
    try:
        host = first_host({"SLURM_JOB_NODELIST": text})
    except UserError:
        return
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in host)
