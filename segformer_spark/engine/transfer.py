"""Out of DeepSpeed and into it: the training state by parameter name, under any ZeRO stage and number of ranks.

DeepSpeed's own checkpoints hold one shard per rank and refuse another number of ranks (DeepSpeed#2898, #5405, #7628).
Here every tensor is whole and named. Exporting and importing are collective: all ranks call them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from segformer_spark.engine.state import EngineState

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET_VALUES = 2**23
"""Values that are gathered at a time, 32 MiB."""

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def export_state(engine: Any, names: dict[str, str]) -> EngineState:
    """Copy the state to the CPU; `names` maps live names to stored names."""
    module: nn.Module = engine.module
    step = _optimizer_step(engine)
    if step > 0:
        _link_moments(engine)
    parameters = {names[live]: _copy(parameter.float()) for live, parameter in module.named_parameters()}
    trained = {names[live]: parameter for live, parameter in module.named_parameters() if parameter.requires_grad}
    if _uses_zero(engine):
        parameters |= _gathered(trained, None)
    moments = {key: _moments(engine, trained, key) for key in _MOMENTS} if step > 0 else {}
    buffers = {names[live]: _copy(buffer) for live, buffer in module.named_buffers() if live in names}
    return EngineState(parameters, buffers, moments, step, _loss_scaler(engine))


def import_state(engine: Any, state: EngineState, names: dict[str, str]) -> None:
    """Set weights, masters, moments, buffers and step count, under any stage and number of ranks."""
    module: nn.Module = engine.module
    if state.optimizer_step > 0:
        _create_moments(engine, state.optimizer_step)
    for live, parameter in module.named_parameters():
        name = names[live]
        value = state.parameters[name].to(parameter.device)
        parameter.data.copy_(value)
        if not parameter.requires_grad:
            continue
        safe_set_full_fp32_param(parameter, value.float())
        for key in state.moments:
            _set_moment(engine, parameter, key, state.moments[key][name].to(parameter.device))
    for live, buffer in module.named_buffers():
        if live in names:
            buffer.copy_(state.buffers[names[live]])
    if state.loss_scaler is not None and engine.fp16_enabled():
        for counter, amount in state.loss_scaler.items():
            setattr(engine.optimizer.loss_scaler, counter, amount)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _uses_zero(engine: Any) -> bool:
    return bool(engine.zero_optimization())


@torch.no_grad()
def _gathered(parameters: Mapping[str, nn.Parameter], key: str | None) -> dict[str, Tensor]:
    """Whole fp32 masters, or moments, on the CPU: every rank puts in the fragments that it owns.

    As DeepSpeed's safe_get_full_fp32_param and safe_get_full_optimizer_state do, which reduce each tensor by itself.
    """
    whole: dict[str, Tensor] = {}
    for bucket in _buckets(parameters):
        first = bucket[0][1]
        flat = torch.zeros(sum(p.numel() for _, p in bucket), device=first.device)
        for (_, parameter), part in zip(bucket, _slices(bucket, flat), strict=True):
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                own = mapping.lp_fragment_address
                part[own.start : own.start + own.numel].copy_(mapping.get_hp_fragment(key))
        dist.all_reduce(flat, group=first._dp_group)  # type: ignore[attr-defined]
        slices = _slices(bucket, flat)
        whole |= {name: _copy(part.view_as(p)) for (name, p), part in zip(bucket, slices, strict=True)}
    return whole


def _buckets(parameters: Mapping[str, nn.Parameter]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    for item in parameters.items():
        bucket.append(item)
        if sum(p.numel() for _, p in bucket) >= _BUCKET_VALUES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _slices(bucket: Sequence[tuple[str, nn.Parameter]], flat: Tensor) -> Sequence[Tensor]:
    return torch.split(flat, [p.numel() for _, p in bucket])


def _flat_partitions(engine: Any) -> list[Tensor]:
    """The tensors that this rank's AdamW really updates: one per parameter group."""
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _base_state(engine: Any) -> Any:
    return engine.optimizer.optimizer.state if _uses_zero(engine) else engine.optimizer.state


def _optimizer_step(engine: Any) -> int:
    steps = {int(entry["step"]) for entry in _base_state(engine).values() if "step" in entry}
    assert len(steps) <= 1, f"parameter groups disagree about the step: {steps}"
    return steps.pop() if steps else 0


def _link_moments(engine: Any) -> None:
    """Connect parameters with their moments.

    With several groups DeepSpeed 0.19 links after the first group's first step and then calls it done, so the others
    are missing ("exp_avg not found in optimizer state fragment"). Linking again is idempotent.
    """
    if not _uses_zero(engine):
        return
    relink = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if relink is None:
        raise RuntimeError("this DeepSpeed keeps its optimizer state in another way; install deepspeed>=0.19.8,<0.20")
    engine.optimizer._hp_optimizer_states_linked = False
    relink()


def _create_moments(engine: Any, step: int) -> None:
    """Before the first step AdamW has no state to set: make it as AdamW would."""
    updated = (
        _flat_partitions(engine) if _uses_zero(engine) else [p for p in engine.module.parameters() if p.requires_grad]
    )
    fused = bool(engine.basic_optimizer.defaults.get("fused"))
    for tensor in updated:
        _base_state(engine)[tensor] = {
            "step": torch.tensor(float(step), device=tensor.device if fused else "cpu"),
            **{key: torch.zeros_like(tensor) for key in _MOMENTS},
        }
    _link_moments(engine)


def _moments(engine: Any, parameters: Mapping[str, nn.Parameter], key: str) -> dict[str, Tensor]:
    if _uses_zero(engine):
        return _gathered(parameters, key)
    return {name: _copy(engine.optimizer.state[parameter][key]) for name, parameter in parameters.items()}


def _set_moment(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if _uses_zero(engine):
        safe_set_full_optimizer_state(parameter, value, key)
    else:
        engine.optimizer.state[parameter][key].copy_(value)


def _loss_scaler(engine: Any) -> dict[str, float] | None:
    if not engine.fp16_enabled():
        return None
    scaler = engine.optimizer.loss_scaler
    return {name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)}
