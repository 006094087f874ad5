"""Into DeepSpeed: the training state by parameter name, under any ZeRO stage and number of ranks.

DeepSpeed's own checkpoints hold one shard per rank and refuse another number of ranks (DeepSpeed#2898, #5405, #7628).
Here every tensor is whole and named, on the first rank, which reads and writes. Exporting and importing are collective:
all ranks call them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.optimizer import state_keys
from segformer_spark.engine.state import EngineState

_BUCKET_VALUES = 2**23
"""Values that travel at a time, 32 MiB."""

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def import_state(engine: Any, state: EngineState | None, names: dict[str, str], group: Group) -> None:
    """Set weights, masters, moments, buffers and step count, under any stage and number of ranks.

    Args:
        state: on the first rank, whose tensors the others get from it: a file system is read once.
    """
    module: nn.Module = engine.module
    about = None if state is None else (state.optimizer_step, tuple(state.moments), state.loss_scaler)
    told = group.broadcast(about)
    assert told is not None, "the first rank has the state"
    step, moments, loss_scaler = told
    if step > 0:
        _create_moments(engine, step)
    live_parameters = dict(module.named_parameters())
    for live, value in _shared(live_parameters, None if state is None else state.parameters, names, group):
        parameter = live_parameters[live]
        parameter.data.copy_(value)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, value)
    trained = {live: parameter for live, parameter in live_parameters.items() if parameter.requires_grad}
    for key in moments:
        for live, value in _shared(trained, None if state is None else state.moments[key], names, group):
            _set_moment(engine, live_parameters[live], key, value)
    buffers = {live: buffer for live, buffer in module.named_buffers() if live in names}
    receive(buffers, None if state is None else state.buffers, names, group)
    if loss_scaler is not None and engine.fp16_enabled():
        for counter, amount in loss_scaler.items():
            setattr(engine.optimizer.loss_scaler, counter, amount)


def receive(
    targets: Mapping[str, Tensor], given: Mapping[str, Tensor] | None, names: dict[str, str], group: Group
) -> None:
    """Set tensors, by live name, to the first rank's, by stored name, where `given` holds them. Collective."""
    real = {live: target for live, target in targets.items() if target.is_floating_point()}
    for live, value in _shared(real, given, names, group):
        targets[live].copy_(value)
    for live in targets.keys() - real.keys():  # counters
        value = targets[live].clone() if given is None else given[names[live]].to(targets[live])
        dist.broadcast(value, 0)
        targets[live].copy_(value)


def _shared(
    targets: Mapping[str, Tensor], given: Mapping[str, Tensor] | None, names: dict[str, str], group: Group
) -> Iterator[tuple[str, Tensor]]:
    """Live names and the first rank's fp32 values, in the shape of `targets`; some 32 MiB travel at a time."""
    for bucket in _buckets(targets):
        flat = torch.empty(sum(target.numel() for _, target in bucket), device=group.device)
        parts = _slices(bucket, flat)
        if given is not None:
            for (live, _), part in zip(bucket, parts, strict=True):
                part.copy_(given[names[live]].flatten())
        if group.world_size > 1:
            dist.broadcast(flat, 0)
        yield from ((live, part.view_as(target)) for (live, target), part in zip(bucket, parts, strict=True))


def uses_zero(engine: Any) -> bool:
    """Whether the optimizer updates partitions, which DeepSpeed made of the parameters."""
    return bool(engine.zero_optimization())


_Named = TypeVar("_Named", bound=Tensor)


def _buckets(tensors: Mapping[str, _Named]) -> Iterator[list[tuple[str, _Named]]]:
    bucket: list[tuple[str, _Named]] = []
    values = 0
    for item in tensors.items():
        bucket.append(item)
        values += item[1].numel()
        if values >= _BUCKET_VALUES:
            yield bucket
            bucket, values = [], 0
    if bucket:
        yield bucket


def _slices(bucket: Sequence[tuple[str, Tensor]], flat: Tensor) -> Sequence[Tensor]:
    return torch.split(flat, [tensor.numel() for _, tensor in bucket])


def flat_partitions(engine: Any) -> list[Tensor]:
    """The tensors that this rank's optimizer really updates: one per parameter group."""
    return list(engine.optimizer.single_partition_of_fp32_groups)


def optimizer_state(engine: Any) -> Any:
    """{what the optimizer updates: {key: tensor}}: of parameters or, under ZeRO, of this rank's flat partitions."""
    return engine.optimizer.optimizer.state if uses_zero(engine) else engine.optimizer.state


def applied_updates(engine: Any) -> int:
    """Updates that were applied: as the optimizer counts them, or DeepSpeed where it (SGD) does not."""
    if not _counts_steps(engine.basic_optimizer):
        return int(engine.global_steps - engine.skipped_steps)
    steps = {int(entry["step"]) for entry in optimizer_state(engine).values() if "step" in entry}
    assert len(steps) <= 1, f"parameter groups disagree about the step: {steps}"
    return steps.pop() if steps else 0


def _counts_steps(optimizer: torch.optim.Optimizer) -> bool:
    return not isinstance(optimizer, torch.optim.SGD)


def link_moments(engine: Any) -> None:
    """Connect parameters with their moments.

    With several groups DeepSpeed 0.19 links after the first group's first step and then calls it done, so the others
    are missing ("exp_avg not found in optimizer state fragment"). Linking again is idempotent.
    """
    if not uses_zero(engine):
        return
    relink = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if relink is None:
        raise RuntimeError("this DeepSpeed keeps its optimizer state in another way; install deepspeed>=0.19.8,<0.20")
    engine.optimizer._hp_optimizer_states_linked = False
    relink()


def _create_moments(engine: Any, step: int) -> None:
    """Before the first step an optimizer has no state to set: make it as it would."""
    engine.global_steps = step + engine.skipped_steps
    updated = (
        flat_partitions(engine) if uses_zero(engine) else [p for p in engine.module.parameters() if p.requires_grad]
    )
    keys = state_keys(engine.basic_optimizer)
    fused = bool(engine.basic_optimizer.defaults.get("fused"))
    for tensor in updated:
        own = optimizer_state(engine)[tensor]
        if _counts_steps(engine.basic_optimizer):
            own["step"] = torch.tensor(float(step), device=tensor.device if fused else "cpu")
        own |= {key: torch.zeros_like(tensor) for key in keys}
    link_moments(engine)


def _set_moment(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if uses_zero(engine):
        safe_set_full_optimizer_state(parameter, value, key)
    else:
        engine.optimizer.state[parameter][key].copy_(value)


def loss_scaler(engine: Any) -> dict[str, float] | None:
    """Counters of the dynamic loss scale; None but under fp16."""
    if not engine.fp16_enabled():
        return None
    scaler = engine.optimizer.loss_scaler
    return {name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)}
