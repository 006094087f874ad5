"""The process group and the collectives that the package uses."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from segformer_spark.distributed.activity import Activity
from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.peer_watch import watch_peers
from segformer_spark.distributed.rendezvous import Meeting, meet
from segformer_spark.errors import PeersNotFound, UserError

T = TypeVar("T")

_MEETING_MINUTES = 10.0


@dataclass(frozen=True)
class Group:
    """The ranks of this job.

    Attributes:
        device: where this rank computes.
        control: gloo group for decisions on the CPU; on GPUs they must not wait for the device.
        own_threads: CPU threads that are this rank's share.
        activity: what this rank is doing, for those who watch over it.
        background: gloo group for what a thread does beside the training; None for one rank.
    """

    launch: Launch
    device: torch.device
    control: Any
    own_threads: int = 1
    activity: Activity = field(default_factory=Activity)
    background: Any = None

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def world_size(self) -> int:
        return self.launch.world_size

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank; the same answer everywhere."""
        return bool(self.max_over_ranks(int(flag)))

    def max_over_ranks(self, value: int) -> int:
        """The largest value over the ranks; the same answer everywhere."""
        return self.start_max(value)()

    def start_max(self, value: int) -> Callable[[], int]:
        """Begin `max_over_ranks`; what it returns waits for the answer, which a thread of gloo's brings meanwhile."""
        box = torch.tensor([value])
        work: Any = dist.all_reduce(box, dist.ReduceOp.MAX, group=self.control, async_op=True)

        def answer() -> int:
            work.wait()
            return int(box.item())

        return answer

    def raise_common(self, error: Exception | None) -> None:
        """Raise the error of the lowest rank that has one, on every rank; return when none has. Collective."""
        if not self.any(error is not None):
            return
        raise _shared(next(failure for failure in self.gather(error) if failure is not None))

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """A UserError that some ranks meet in the block is raised on every rank at its end. Collective.

        A damaged image on one rank must not leave the others waiting for its counts.
        """
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        self.raise_common(failure)

    def broadcast(self, value: T) -> T:
        """Rank 0's value on all ranks."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its value everywhere; its error is raised on every rank."""
        outcome: tuple[T | None, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = (action(), None)
            except Exception as error:  # noqa: BLE001 - raised again below, on all ranks
                outcome = (None, error)
        result = [*self.broadcast(outcome)]
        del outcome
        if result[1] is not None:
            raise _shared(cast(Exception, result.pop()))
        return cast(T, result[0])

    def sum(self, value: Tensor) -> Tensor:
        """A new tensor with the sum over all ranks; not differentiable."""
        total = value.detach().clone()
        total = total if total.device == self.device else total.to(self.device)
        dist.all_reduce(total)
        return total

    def differentiable_sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, for losses.

        The result is the same on every rank. Its backward is the identity times the world size: gradients are averaged
        over ranks afterwards, which then gives the gradient of the global value.
        """
        if self.world_size == 1:
            return value
        result: Tensor = _DifferentiableSum.apply(value, self.world_size)
        return result

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


def _shared(error: Exception) -> Exception:
    """Mark an error that all ranks raise, so that rank 0 alone prints it.

    Who raises it keeps no name for it: frame and error would hold each other, and with them the loader's processes.
    """
    if isinstance(error, UserError):
        error.shared = True
    return error


class _DifferentiableSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, world_size: int) -> Tensor:
        ctx.world_size = world_size
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * ctx.world_size, None


class SingleProcess(Group):
    """A group of this process alone, which needs no torch.distributed."""

    @classmethod
    def on(cls, device: torch.device) -> SingleProcess:
        """The group with its device."""
        return cls(Launch("python", 0, 1, 0, 1, None), device, None)

    def start_max(self, value: int) -> Callable[[], int]:
        return lambda: value

    def broadcast(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]

    def sum(self, value: Tensor) -> Tensor:
        return value.detach().clone().to(self.device)

    def barrier(self) -> None:
        """Nobody to wait for."""


@contextmanager
def process_group(
    launch: Launch,
    device: torch.device | Callable[[], torch.device],
    timeout_minutes: float = 30.0,
    peer_timeout: float | None = None,
    backend: str | None = None,
) -> Iterator[Group]:
    """Join the ranks for the duration of the block.

    Args:
        device: where this rank computes, or what chooses it; a rank for which that fails has all ranks end.
        timeout_minutes: a collective that waits longer raises.
        peer_timeout: end this process when a rank gives no heartbeat for so many seconds; None: never.
        backend: of torch.distributed; None for NCCL on GPUs, which takes one rank per GPU, and gloo on CPUs.

    Raises:
        UserError: a rank has no device, or they are of different kinds; each is named, on all ranks.
        PeersNotFound: ranks are missing.
    """
    own, trouble = _device_or_trouble(device)
    about = {"device": own.type, "trouble": trouble, "cpus": sorted(os.sched_getaffinity(0))}
    meeting = _meet(launch, timeout_minutes, about)
    _refuse_troubles(meeting)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    backend = backend or ("nccl" if own.type == "cuda" else "gloo")
    options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)}
    try:
        dist.init_process_group(backend, store=meeting.store, rank=launch.rank, world_size=launch.world_size, **options)
    except (RuntimeError, ValueError, dist.DistError) as error:
        raise PeersNotFound(
            f"the {launch.world_size} ranks met at {meeting.address} and cannot connect to each other: {error}",
            "Set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to the interface that joins the nodes.",
        ) from error
    try:
        control = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=options["timeout"])
        background = dist.new_group(backend="gloo", timeout=options["timeout"]) if launch.world_size > 1 else None
        group = Group(launch, own, control, _share_of_cpus(meeting, launch.rank), background=background)
        with watch_peers(meeting, launch.rank, peer_timeout, group.activity):
            yield group
    finally:
        dist.destroy_process_group()


def _device_or_trouble(device: torch.device | Callable[[], torch.device]) -> tuple[torch.device, str]:
    if isinstance(device, torch.device):
        return device, ""
    try:
        return device(), ""
    except UserError as error:
        return torch.device("cpu"), str(error)


def _refuse_troubles(meeting: Meeting) -> None:
    """Raise, on every rank, what keeps one of them from computing."""
    ranks = [(rank, meeting.hosts[rank], told) for rank, told in enumerate(meeting.about)]
    for rank, host, told in ranks:
        if told["trouble"]:
            where = f"rank {rank} on {host}: " if len(ranks) > 1 else ""
            raise UserError(f"{where}{told['trouble']}", shared=True)
    if len({told["device"] for _, _, told in ranks}) > 1:
        listed = ", ".join(f"{told['device']} on rank {rank} ({host})" for rank, host, told in ranks)
        raise UserError(f"the ranks compute on different devices: {listed}", "Set hardware.device.", shared=True)


def _meet(launch: Launch, timeout_minutes: float, about: dict[str, Any]) -> Meeting:
    """Who waits for a rank that never starts holds its GPU: not for too long."""
    if launch.master is None:
        return Meeting("", dist.HashStore(), ("", 0), [socket.gethostname()], [about])  # type: ignore[attr-defined]
    return meet(launch, 60 * min(timeout_minutes, _MEETING_MINUTES), about)


def _share_of_cpus(meeting: Meeting, rank: int) -> int:
    """The cores of this rank's mask, each divided by the ranks of its node that have it too."""
    own = meeting.hosts[rank]
    users = Counter(
        cpu for host, told in zip(meeting.hosts, meeting.about, strict=True) if host == own for cpu in told["cpus"]
    )
    return max(1, int(sum(1 / users[cpu] for cpu in meeting.about[rank]["cpus"]) + 1e-9))
