"""A copy of the training state of one step, taken at once and put together by name later, while training goes on.

Under ZeRO every rank copies the partitions that its optimizer updates: memory that is contiguous, once, to the CPU. Who
wants the state by name has the ranks send them to the first one, in a process group of its own, from a thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.average import WeightAverage
from segformer_spark.engine.optimizer import state_keys
from segformer_spark.engine.state import EngineState
from segformer_spark.engine.transfer import (
    applied_updates,
    flat_partitions,
    loss_scaler,
    optimizer_state,
    uses_zero,
)
from segformer_spark.errors import UserError

MASTER = ""
"""Key of the fp32 weights among the keys of the optimizer's state."""


@dataclass(frozen=True)
class _Fragment:
    """`size` values of a parameter from `offset` on, which lie in a rank's partition from `start` on."""

    name: str
    start: int
    offset: int
    size: int


@dataclass
class Snapshot:
    """What this rank copied of a step.

    Attributes:
        partitions: {key: the optimizer's flat partitions, one per parameter group}; without ZeRO empty.
        named: {key: {name: tensor}} of what the first rank has whole: without ZeRO all, else what is not trained.
        buffers, average: on the first rank.
    """

    step: int
    keys: Sequence[str]
    partitions: dict[str, list[Tensor]]
    named: dict[str, dict[str, Tensor]]
    buffers: dict[str, Tensor]
    average: dict[str, Tensor] | None
    loss_scaler: dict[str, float] | None
    copied: Any = None
    is_in_use: bool = field(default=True)

    def wait(self) -> None:
        """Until the copies have arrived, which a GPU makes behind the step that was launched last."""
        if self.copied is not None:
            self.copied.synchronize()


class Snapshotter:
    """Takes snapshots of an engine, into memory that is kept for the next one: fresh pages cost as much as the copy."""

    def __init__(self, engine: Any, names: dict[str, str], average: WeightAverage | None, group: Group) -> None:
        """Learn where which parameter lies. Collective."""
        self._engine, self._names, self._average, self._group = engine, names, average, group
        module: nn.Module = engine.module
        self._trained = {names[live]: p for live, p in module.named_parameters() if p.requires_grad}
        self._zero = uses_zero(engine)
        self._layouts = group.gather(_layout(engine, self._trained)) if self._zero else []
        self._kept: dict[str, list[Tensor]] = {}
        self._last: Snapshot | None = None

    def take(self) -> Snapshot:
        """Copy the state. Every rank takes part, and none waits for another."""
        engine, group = self._engine, self._group
        step = applied_updates(engine)
        keys = [MASTER, *(state_keys(engine.basic_optimizer) if step > 0 else ())]
        kept = {} if self._last is not None and self._last.is_in_use else self._kept
        partitions, named = {}, {}
        if self._zero:
            flat = flat_partitions(engine)
            state = optimizer_state(engine)
            for key in keys:
                partitions[key] = _copied(flat if key == MASTER else [state[part][key] for part in flat], kept, key)
        elif group.is_main:
            state = optimizer_state(engine)
            for key in keys:
                values = [p if key == MASTER else state[p][key] for p in self._trained.values()]
                named[key] = dict(zip(self._trained, _copied(values, kept, key), strict=True))
        buffers: dict[str, Tensor] = {}
        average = None
        if group.is_main:
            module: nn.Module = engine.module
            rest = {self._names[n]: p for n, p in module.named_parameters() if not p.requires_grad}
            named.setdefault(MASTER, {}).update(_by_name({name: p.float() for name, p in rest.items()}, kept, "rest"))
            whole = {self._names[n]: b for n, b in module.named_buffers() if n in self._names}
            buffers = _by_name(whole, kept, "buffers")
            if self._average is not None:
                averaged = {self._names[n]: value for n, value in self._average.values.items()}
                average = _by_name(averaged, kept, "average")
        snapshot = Snapshot(step, keys, partitions, named, buffers, average, loss_scaler(engine))
        if group.device.type == "cuda":
            event: Any = torch.cuda.Event
            snapshot.copied = event()
            snapshot.copied.record()
        self._kept, self._last = kept, snapshot
        return snapshot

    def assemble(self, snapshot: Snapshot, process_group: Any) -> EngineState | None:
        """The state by name on the first rank, None on the others. Collective, and for one thread at a time.

        Args:
            process_group: gloo's, in which nothing else happens meanwhile; None where there is one rank.

        Raises:
            UserError: the first rank has no memory for it; on all ranks, so that none waits for another.
        """
        snapshot.wait()
        named = {key: dict(snapshot.named.get(key, {})) for key in snapshot.keys}
        if self._zero:
            buffer = self._allocate(snapshot, named, process_group)
            for rank, layout in enumerate(self._layouts):
                for key in snapshot.keys:
                    self._collect(snapshot, rank, layout, key, named[key], buffer, process_group)
        if not self._group.is_main:
            snapshot.is_in_use = False
            return None
        order = [self._names[live] for live, _ in self._engine.module.named_parameters()]
        return EngineState(
            parameters={name: named[MASTER][name] for name in order},
            buffers=snapshot.buffers,
            moments={key: named[key] for key in snapshot.keys if key != MASTER},
            optimizer_step=snapshot.step,
            loss_scaler=snapshot.loss_scaler,
            average=snapshot.average,
        )

    def _allocate(self, snapshot: Snapshot, named: dict[str, dict[str, Tensor]], process_group: Any) -> Tensor:
        """Memory of the first rank for what it collects: of whole tensors in `named`, and of one partition."""
        buffer, failure = torch.empty(0), None
        if self._group.is_main:
            try:
                for key in snapshot.keys:
                    named[key] |= {name: torch.empty(p.shape) for name, p in self._trained.items()}
                buffer = torch.empty(max(size for layout in self._layouts for size, _ in layout))
            except (RuntimeError, MemoryError) as error:  # PyTorch has no class of its own for it on the CPU
                failure = error
        has_memory = torch.tensor(failure is None)
        if self._group.world_size > 1:
            dist.broadcast(has_memory, 0, group=process_group)
        if not has_memory:
            snapshot.is_in_use = False
            raise UserError(
                f"the first rank has no memory for the state of step {snapshot.step}, which it puts together"
                + (f": {failure}" if failure is not None else ""),
                "Ask for more memory per node (sbatch --mem), or use fewer loader workers (data.num_workers).",
            ) from failure
        return buffer

    def _collect(
        self,
        snapshot: Snapshot,
        rank: int,
        layout: Sequence[tuple[int, Sequence[_Fragment]]],
        key: str,
        whole: Mapping[str, Tensor],
        buffer: Tensor,
        process_group: Any,
    ) -> None:
        """One rank's partitions of a key, into the whole tensors of the first rank."""
        for number, (size, fragments) in enumerate(layout):
            part = snapshot.partitions[key][number] if rank == self._group.rank else None
            if rank != 0 and rank == self._group.rank and part is not None:
                dist.send(part, 0, group=process_group)
            if not self._group.is_main:
                continue
            if part is None:
                part = buffer[:size]
                dist.recv(part, rank, group=process_group)
            for one in fragments:
                target = whole[one.name].view(-1)
                target[one.offset : one.offset + one.size] = part[one.start : one.start + one.size]

    def release(self, snapshot: Snapshot) -> None:
        """Its memory may be used again: what `assemble` gave is not needed any more."""
        snapshot.is_in_use = False


def _layout(engine: Any, trained: Mapping[str, nn.Parameter]) -> list[tuple[int, list[_Fragment]]]:
    """For each parameter group: the size of this rank's partition, and what lies in it."""
    groups: list[tuple[int, list[_Fragment]]] = [(p.numel(), []) for p in flat_partitions(engine)]
    for name, parameter in trained.items():
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            continue
        own, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        groups[mapping.param_group_index][1].append(_Fragment(name, there.start, own.start, own.numel))
    return groups


def _by_name(tensors: Mapping[str, Tensor], kept: dict[str, list[Tensor]], key: str) -> dict[str, Tensor]:
    return dict(zip(tensors, _copied(list(tensors.values()), kept, key), strict=True))


@torch.no_grad()
def _copied(tensors: Sequence[Tensor], kept: dict[str, list[Tensor]], key: str) -> list[Tensor]:
    """Copies on the CPU, in the memory that is `kept` under this key if it is there."""
    copies = kept.get(key)
    if copies is None:
        copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors]
        kept[key] = copies
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor.detach(), non_blocking=True)
    return copies
