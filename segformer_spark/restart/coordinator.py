"""What the agents of a job do together: one decides, from what all of them report. No sockets and no processes here.

    gathering -> running -> ending -> running (restarted in place) ... -> leaving

The agents are the tasks of one Slurm step, one for each rank, and as many more as there are spare nodes.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode

Message = dict[str, Any]

GRACE_SECONDS, LONG_GRACE_SECONDS = 2.0, 20.0
"""After a rank has ended the others may end by themselves for so long, and say what they saw; then they are killed."""

_SPARE_PATIENCE, _MEETING_PATIENCE = 30.0, 600.0
_KILL_PATIENCE = 60.0
_SIGNALS = 128
_OF_NODES = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE}
"""Signals that may be a node's fault; others are requests to stop."""

_FAULTS_UNTIL_SPARED = 2


class _State(Enum):
    GATHERING = "gathering"
    RUNNING = "running"
    ENDING = "ending"
    LEAVING = "leaving"


@dataclass(frozen=True)
class Layout:
    """How many agents a step has, and what they are for.

    Attributes:
        tasks: agents in all.
        tasks_per_node: agents, and ranks, of each node.
        spare_nodes: nodes that wait for another one to fail.
    """

    tasks: int
    tasks_per_node: int
    spare_nodes: int = 0

    @property
    def world_size(self) -> int:
        return self.tasks - self.spare_nodes * self.tasks_per_node


@dataclass(frozen=True)
class Verdict:
    """Whether ranks are to start again after a fault, and why; `status` is the step's where not."""

    again: bool
    reason: str
    status: int = 0


@dataclass
class _Agent:
    """`rank` and `status`: of the process that it started last; None without one, and while it lives."""

    node: int
    host: str
    rank: int | None = None
    status: int | None = None

    @property
    def is_running(self) -> bool:
        return self.rank is not None and self.status is None


@dataclass
class Coordinator:
    """Takes events and returns messages, {task: what its agent is to do}.

    "start" with generation, rank, world_size, local_rank, local_world_size, master and, after a fault, `noticed`, when
    that was; "kill"; "leave" with a status.

    Attributes:
        decide: what to do after ranks of this generation ended with this status: (status, generation).
        say: prints a line for people.
        failed: is told of a host whose rank ended by a signal, or that is lost, and of what happened.
        clock: seconds, and `time` those since the epoch.
    """

    layout: Layout
    decide: Callable[[int, int], Verdict]
    say: Callable[[str], None]
    failed: Callable[[str, str], None]
    clock: Callable[[], float]
    time: Callable[[], float]
    generation: int = -1
    faults: Counter[str] = field(default_factory=Counter)
    _state: _State = _State.GATHERING
    _agents: dict[int, _Agent] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)
    _cause: tuple[int, str] | None = None
    _noticed: float = 0.0
    _kill_at: float = 0.0
    _killed_since: float | None = None
    _since: float | None = None
    _asked_to_stop: bool = False

    @property
    def is_leaving(self) -> bool:
        return self._state is _State.LEAVING

    def joined(self, task: int, node: int, host: str) -> Mapping[int, Message]:
        """An agent is there, on this node of the job."""
        self._agents[task] = _Agent(node, host)
        self._since = self.clock() if self._since is None else self._since
        everyone = len(self._agents) == self.layout.tasks
        return self._start() if self._state is _State.GATHERING and everyone else {}

    def ended(self, task: int, status: int) -> Mapping[int, Message]:
        """The rank of an agent ended; above 128 by a signal."""
        agent = self._agents.get(task)
        if agent is None or not agent.is_running:
            return {}
        agent.status = status
        if self._state is _State.RUNNING:
            if status != 0:
                self._fault(status, f"rank {agent.rank} on {agent.host} {_ending(status)}", agent.host)
            elif not self._running():
                return self._leave(0)
        return self._after_the_end()

    def lost(self, task: int, why: str) -> Mapping[int, Message]:
        """An agent is gone, or says nothing any more: its node is not used again."""
        agent = self._agents.get(task)
        if agent is None or agent.node in self._lost or self.is_leaving:
            return {}
        self._lost.add(agent.node)
        of_node = {number: other for number, other in self._agents.items() if other.node == agent.node}
        had_ranks = any(other.rank is not None for other in of_node.values())
        for number in of_node:
            del self._agents[number]
        told: dict[int, Message] = {number: {"do": "leave", "status": int(ExitCode.PEER_LOST)} for number in of_node}
        if had_ranks:
            self._blame(agent.host, f"{agent.host} is lost ({why})")
        if self._state is _State.RUNNING and had_ranks:
            self._fault(int(ExitCode.PEER_LOST), f"{agent.host} is lost ({why})", agent.host)
        elif self._state is _State.RUNNING:
            self.say(f"spare node {agent.host} is lost ({why}): {self._spares()} left")
        return {**told, **self._after_the_end()}

    def asked_to_stop(self) -> Mapping[int, Message]:
        """A signal came: the ranks, who have it too, save and leave, and are not started again."""
        self._asked_to_stop = True
        return {} if self._state in (_State.RUNNING, _State.ENDING) else self._leave(int(ExitCode.STOPPED))

    def tick(self) -> Mapping[int, Message]:
        """Time has passed."""
        now = self.clock()
        if self._state is _State.ENDING and now > self._kill_at:
            self._kill_at = now + GRACE_SECONDS
            self._killed_since = now if self._killed_since is None else self._killed_since
            if now - self._killed_since > _KILL_PATIENCE:
                # It waits in the kernel, for a disk or a driver.
                return self.lost(self._running()[0], "its rank cannot be killed")
            return {task: {"do": "kill"} for task in self._running()}
        if self._state is not _State.GATHERING or self._since is None:
            return {}
        if now - self._since > _MEETING_PATIENCE:
            missing = sorted(set(range(self.layout.tasks)) - self._agents.keys())
            self.say(f"tasks {', '.join(map(str, missing))} of the job did not come within {_MEETING_PATIENCE:.0f} s")
            return self._leave(int(ExitCode.PEER_LOST))
        if self.layout.spare_nodes and now - self._since > _SPARE_PATIENCE and self._usable_nodes():
            self.say(f"{self.layout.tasks - len(self._agents)} agents did not come: starting without them")
            return self._start()
        return {}

    def _fault(self, status: int, what: str, host: str) -> None:
        self._state, self._cause = _State.ENDING, (status, what)
        # After a signal or an error of its own the others wait in a collective; else they are ending, too.
        is_alone = status > _SIGNALS or status in (ExitCode.PEER_LOST, ExitCode.OWN_FAILURE)
        self._noticed = self.time()
        self._kill_at = self.clock() + (GRACE_SECONDS if is_alone else LONG_GRACE_SECONDS)
        self._killed_since = None
        if status - _SIGNALS in _OF_NODES:
            self._blame(host, what)

    def _blame(self, host: str, what: str) -> None:
        """A node lost its ranks, and nobody asked them to stop."""
        if not self._asked_to_stop:
            self.faults[host] += 1
            self.failed(host, what)

    def _after_the_end(self) -> Mapping[int, Message]:
        """Once no rank of a generation lives: start the next one, or leave."""
        if self._state is not _State.ENDING or self._running():
            return {}
        assert self._cause is not None
        status, what = self._cause
        statuses = {agent.status for agent in self._agents.values() if agent.rank is not None}
        if int(ExitCode.STOPPED) in statuses:
            return self._leave(int(ExitCode.STOPPED))
        if self._asked_to_stop:
            return self._leave(status)
        if not self._usable_nodes():
            self.say(f"{what}: not restarted in place: too few nodes are left")
            return self._leave(int(ExitCode.PEER_LOST))
        try:
            verdict = self.decide(status, self.generation)
        except (UserError, OSError) as error:
            verdict = Verdict(False, str(error), status)
        if not verdict.again:
            self.say(f"{what}: not restarted in place: {verdict.reason}")
            return self._leave(verdict.status)
        self.say(f"{what}: restarting in place, number {self.generation + 1}: {verdict.reason}")
        return self._start()

    def _start(self) -> Mapping[int, Message]:
        chosen = self._usable_nodes()
        self.generation += 1
        self._state = _State.RUNNING
        tasks = [[task for task, agent in sorted(self._agents.items()) if agent.node == node] for node in chosen]
        messages: dict[int, Message] = {}
        for agent in self._agents.values():
            agent.rank = agent.status = None
        master = self._agents[tasks[0][0]].host
        for task, local_rank, size in ((t, i, len(own)) for own in tasks for i, t in enumerate(own)):
            self._agents[task].rank = len(messages)
            messages[task] = {
                "do": "start",
                "generation": self.generation,
                "rank": len(messages),
                "world_size": self.layout.world_size,
                "local_rank": local_rank,
                "local_world_size": size,
                "master": master,
                "is_first_host": tasks[0][0] == 0,
                "noticed": self._noticed if self.generation else None,
                "cause": self._cause[1] if self._cause is not None else None,
            }
        return messages

    def _usable_nodes(self) -> Sequence[int]:
        """The nodes for the next ranks, in order: those that did not have several faults first; empty: too few."""
        tasks, hosts = Counter(agent.node for agent in self._agents.values()), {}
        for agent in self._agents.values():
            hosts[agent.node] = agent.host
        whole = [node for node, count in tasks.items() if count == self.layout.tasks_per_node]
        whole.sort(key=lambda node: (self.faults[hosts[node]] >= _FAULTS_UNTIL_SPARED, node))
        count = self.layout.world_size // self.layout.tasks_per_node
        return sorted(whole[:count]) if len(whole) >= count else []

    def _spares(self) -> int:
        nodes = {agent.node for agent in self._agents.values()}
        return len(nodes) - self.layout.world_size // self.layout.tasks_per_node

    def _running(self) -> list[int]:
        return [task for task, agent in self._agents.items() if agent.is_running]

    def _leave(self, status: int) -> Mapping[int, Message]:
        self._state = _State.LEAVING
        return {task: {"do": "leave", "status": status} for task in self._agents}


def _ending(status: int) -> str:
    if status > _SIGNALS:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(status - _SIGNALS).name}"
    return f"ended with status {status}"
