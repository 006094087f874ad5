from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from segformer_spark.exit_codes import ExitCode
from segformer_spark.restart.coordinator import GRACE_SECONDS, LONG_GRACE_SECONDS, Coordinator, Layout, Message, Verdict


@dataclass
class Job:
    """A coordinator whose clock and verdicts a test has in hand."""

    layout: Layout
    verdict: Verdict = field(default_factory=lambda: Verdict(True, "again"))
    now: float = 0.0
    said: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.failed: list[str] = []
        keep = lambda host, what: self.failed.append(host)  # noqa: E731
        self.coordinator = Coordinator(self.layout, self.decide, self.said.append, keep, lambda: self.now, lambda: 1e9)

    def decide(self, status: int, generation: int) -> Verdict:
        self.asked.append(status)
        assert generation == self.coordinator.generation
        return self.verdict

    def join_all(self) -> Mapping[int, Message]:
        told: Mapping[int, Message] = {}
        for task in range(self.layout.tasks):
            assert not told
            node = task // self.layout.tasks_per_node
            told = self.coordinator.joined(task, node, f"n{node}")
        return told

    def later(self, seconds: float) -> Mapping[int, Message]:
        self.now += seconds
        return self.coordinator.tick()


def places(told: Mapping[int, Message]) -> dict[int, tuple[int, int]]:
    """{task: (rank, local rank)} of those that are to start."""
    starts = {task: message for task, message in told.items() if message["do"] == "start"}
    assert all(m["world_size"] == len(starts) for m in starts.values())
    assert len({m["master"] for m in starts.values()}) <= 1
    return {task: (m["rank"], m["local_rank"]) for task, m in starts.items()}


def leave(tasks: int, status: int) -> dict[int, Message]:
    """All agents are to."""
    return {task: {"do": "leave", "status": status} for task in range(tasks)}


def test_ranks_start_when_all_agents_are_there_and_leave_when_all_are_done() -> None:
    job = Job(Layout(4, 2))
    told = job.join_all()
    assert places(told) == {0: (0, 0), 1: (1, 1), 2: (2, 0), 3: (3, 1)}
    assert [job.coordinator.ended(task, 0) for task in (2, 0, 3)] == [{}, {}, {}]
    assert job.coordinator.ended(1, 0) == leave(4, 0)


def test_a_fault_ends_the_others_after_a_grace_and_starts_all_again() -> None:
    job = Job(Layout(3, 1))
    job.join_all()
    assert job.coordinator.ended(1, 137) == {}
    assert job.coordinator.ended(0, 87) == {}, "it saw its peer's end by itself"
    assert job.later(GRACE_SECONDS / 2) == {}
    assert job.later(GRACE_SECONDS) == {2: {"do": "kill"}}
    told = job.coordinator.ended(2, 137)
    assert places(told) == {0: (0, 0), 1: (1, 0), 2: (2, 0)}
    assert {(m["generation"], m["noticed"]) for m in told.values()} == {(1, 1e9)}
    assert job.asked == [137], "the first to end says why"
    assert job.failed == ["n1"]
    assert job.said == ["rank 1 on n1 was ended by SIGKILL: restarting in place, number 1: again"]


def test_ranks_that_end_together_have_time_for_their_records() -> None:
    job = Job(Layout(2, 1), Verdict(False, "fix it", 2))
    job.join_all()
    job.coordinator.ended(1, ExitCode.USER_ERROR)
    assert job.later(LONG_GRACE_SECONDS - 1) == {}
    assert job.later(2) == {0: {"do": "kill"}}


def test_what_would_happen_again_ends_the_step() -> None:
    job = Job(Layout(2, 1), Verdict(False, "fix it", 2))
    job.join_all()
    job.coordinator.ended(0, 2)
    assert job.coordinator.ended(1, 2) == leave(2, 2)
    assert "not restarted in place: fix it" in job.said[-1]
    assert job.failed == [], "no fault of the node"


@pytest.mark.parametrize("status", [85, 143])
def test_ranks_that_were_asked_to_stop_do_not_start_again(status: int) -> None:
    """Whether they could save (85) or a signal came before they could."""
    job = Job(Layout(2, 1))
    job.join_all()
    assert job.coordinator.asked_to_stop() == {}
    job.coordinator.ended(0, status)
    assert job.coordinator.ended(1, status) == leave(2, status)
    assert job.asked == []


def test_a_stop_before_the_ranks_start() -> None:
    job = Job(Layout(2, 1))
    job.coordinator.joined(0, 0, "n0")
    assert job.coordinator.asked_to_stop() == {0: {"do": "leave", "status": ExitCode.STOPPED}}


def test_a_spare_node_takes_the_place_of_a_lost_one() -> None:
    job = Job(Layout(6, 2, spare_nodes=1))
    assert places(job.join_all()) == {0: (0, 0), 1: (1, 1), 2: (2, 0), 3: (3, 1)}
    assert job.coordinator.lost(2, "silent") == {task: {"do": "leave", "status": ExitCode.PEER_LOST} for task in (2, 3)}
    assert job.coordinator.lost(3, "closed") == {}, "its node is lost already"
    job.coordinator.ended(0, 87)
    told = job.coordinator.ended(1, 87)
    assert places(told) == {0: (0, 0), 1: (1, 1), 4: (2, 0), 5: (3, 1)}
    assert "n1 is lost (silent): restarting in place" in job.said[-1]


def test_without_a_spare_a_lost_node_ends_the_step_for_a_requeue() -> None:
    job = Job(Layout(2, 1))
    job.join_all()
    job.coordinator.lost(1, "silent")
    assert job.failed == ["n1"]
    assert job.coordinator.ended(0, 87) == {0: {"do": "leave", "status": ExitCode.PEER_LOST}}
    assert "too few nodes are left" in job.said[-1]


def test_a_lost_spare_disturbs_nobody() -> None:
    job = Job(Layout(3, 1, spare_nodes=1))
    job.join_all()
    assert job.coordinator.lost(2, "silent") == {2: {"do": "leave", "status": ExitCode.PEER_LOST}}
    assert job.failed == []
    assert job.said == ["spare node n2 is lost (silent): 0 left"]
    assert job.coordinator.ended(0, 0) == {}


def test_a_node_whose_ranks_fail_twice_becomes_the_spare() -> None:
    job = Job(Layout(3, 1, spare_nodes=1))
    told = job.join_all()
    for _ in range(2):
        assert set(places(told)) == {0, 1}
        job.coordinator.ended(1, 139)
        told = job.coordinator.ended(0, 87)
    assert places(told) == {0: (0, 0), 2: (1, 0)}


def test_a_spare_that_does_not_come_is_not_waited_for() -> None:
    job = Job(Layout(3, 1, spare_nodes=1))
    job.coordinator.joined(0, 0, "n0")
    job.coordinator.joined(2, 2, "n2")
    assert job.later(29) == {}
    assert places(job.later(2)) == {0: (0, 0), 2: (1, 0)}


def test_agents_that_do_not_come_are_named_and_not_waited_for_for_ever() -> None:
    job = Job(Layout(3, 1))
    job.coordinator.joined(1, 1, "n1")
    assert job.later(599) == {}
    assert job.later(2) == {1: {"do": "leave", "status": ExitCode.PEER_LOST}}
    assert job.said == ["tasks 0, 2 of the job did not come within 600 s"]


def test_a_rank_that_cannot_be_killed_takes_its_node_out() -> None:
    """It waits in the kernel, for a disk or a driver."""
    job = Job(Layout(3, 1, spare_nodes=1))
    job.join_all()
    job.coordinator.ended(1, 139)
    told: Mapping[int, Message] = {}
    while not places(told):
        told = job.later(GRACE_SECONDS + 0.1)
        assert job.now < 100
    assert job.now > 60
    assert told[0] == {"do": "leave", "status": ExitCode.PEER_LOST}
    assert {task: message["rank"] for task, message in told.items() if task} == {1: 0, 2: 1}
    assert job.failed == ["n1", "n0"]


@pytest.mark.parametrize(
    ("status", "stopped", "blamed"),
    [(139, False, ["n1"]), (137, False, ["n1"]), (87, False, []), (143, False, []), (70, False, []), (137, True, [])],
)
def test_only_what_may_be_a_nodes_fault_is_held_against_it(status: int, stopped: bool, blamed: list[str]) -> None:
    """The rank that says that another one is lost is not the one; a job that is ended has its ranks killed."""
    job = Job(Layout(2, 1))
    job.join_all()
    if stopped:
        job.coordinator.asked_to_stop()
    job.coordinator.ended(1, status)
    assert job.failed == blamed
    assert dict(job.coordinator.faults) == dict.fromkeys(blamed, 1)
