"""What every rank has a copy of, compared: a bit that flipped in one memory would spread to all in the next updates."""

from __future__ import annotations

import socket
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import ReplicasDiffer
from segformer_spark.models.batch_norm import CrossRankBatchNorm2d

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprints(model: nn.Module) -> tuple[list[str], Tensor]:
    """Names, and for each the sum of its bits as whole numbers, int64 (n,) on the model's device: one flipped bit, or
    any number of them in one value, changes it. Statistics that each rank has of its own images are left out."""
    own = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, CrossRankBatchNorm2d)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in own}
    sums = [tensor.contiguous().view(-1).view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)
            for tensor in tensors.values() if tensor.numel()]  # fmt: skip
    return [name for name, tensor in tensors.items() if tensor.numel()], torch.stack(sums)


def compare_replicas(model: nn.Module, group: Group, step: int) -> None:
    """Compare weights, shared statistics and the step. Collective.

    Raises:
        ReplicasDiffer: on all ranks, naming those that differ from most.
    """
    if group.world_size == 1:
        return
    names, sums = fingerprints(model)
    found = group.gather((step, tuple(sums.tolist()), socket.gethostname()))
    versions = Counter((own_step, values) for own_step, values, _ in found)
    if len(versions) == 1:
        return
    usual, count = versions.most_common(1)[0]
    others = [rank for rank, (own_step, values, _) in enumerate(found) if (own_step, values) != usual]
    if count * 2 <= len(found):
        others = list(range(len(found)))
    listed = ", ".join(f"rank {rank} on {found[rank][2]}" for rank in others)
    differing = [name for at, name in enumerate(names) if len({values[at] for _, values, _ in found}) > 1]
    what = differing[0] if differing else f"the step ({', '.join(str(own_step) for own_step, _, _ in found)})"
    more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    raise ReplicasDiffer(
        f"step {step}: {listed} {'differ from each other' if len(others) == len(found) else 'differs from the others'} "
        f"in {what}{more}, which are equal on all ranks while nothing is broken",
        "Its memory, its GPU or the network to it is not to be trusted: exclude the node and resume from the last "
        "checkpoint, which was saved before.",
        shared=True,
    )
