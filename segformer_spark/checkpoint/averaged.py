"""The mean of the weights of a run's last checkpoints, as a model folder (Izmailov et al. 2018, without a pass over the
data for batch-norm statistics, which are averaged as weights are)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from segformer_spark.checkpoint.export import export_model, load_model
from segformer_spark.checkpoint.names import committed, step_of
from segformer_spark.checkpoint.store import StoredState, read, verify
from segformer_spark.errors import CheckpointError
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory, locate_model


def newest_few(folder: Path, number: int) -> list[Path]:
    """The newest checkpoints in a folder, oldest first.

    Raises:
        CheckpointError: there are fewer.
    """
    found = committed(folder)
    if len(found) < number:
        raise CheckpointError(
            f"{folder}: {len(found)} checkpoints, {number} are asked for; output.keep_checkpoints says how many a run "
            "keeps"
        )
    return found[-number:]


def export_average(run: RunDirectory, checkpoints: Sequence[Path], target: Path) -> None:
    """Write the mean to `target`. Of a run with averaged weights these are what is averaged. For rank 0.

    Args:
        checkpoints: those of the run that count, oldest first.

    Raises:
        CheckpointError: one is damaged, or of other weights.
    """
    total: dict[str, Tensor] = {}
    for path in checkpoints:
        verify(path)
        stored = read(path)
        weights = _exported(stored)
        if total and {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in total.items()}:
            raise CheckpointError(f"{path}: has weights of other names or shapes than {checkpoints[0]}")
        for name, tensor in weights.items():
            counts = not tensor.is_floating_point()  # the newest counter
            total[name] = tensor if counts else total.get(name, torch.zeros((), dtype=torch.float64)) + tensor.double()
    mean = {name: (t / len(checkpoints)).float() if t.is_floating_point() else t for name, t in total.items()}
    folder, _ = locate_model(run.path)
    model, card = load_model(folder)
    steps = [step_of(path) for path in checkpoints]
    epoch = int(stored.state["progress"]["position"]["epoch"])
    recipe = {**card.recipe, "mean of the checkpoints at steps": ", ".join(map(str, steps))}
    own = replace(card, step=steps[-1], epoch=epoch, metrics={}, recipe=recipe)
    export_model(model, mean, model.stored_names(), target, own)
    logger.info("%s: the mean of the weights at steps %s", target, ", ".join(map(str, steps)))


def _exported(stored: StoredState) -> dict[str, Tensor]:
    """The weights that best/ and final/ would have of a checkpoint."""
    return stored.model if stored.average is None else stored.average
