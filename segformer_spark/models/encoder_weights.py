"""Weights of an encoder alone, from a file in the names of torchvision, timm or transformers, or of a whole model.

What a classifier or a decode head leaves over is no error; a tensor that the encoder needs and the file lacks is.
Positions of ViT and Hiera are resized to the model's grid.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segformer_spark.errors import CheckpointError
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.positions import fit_positions
from segformer_spark.models.weights import check_header, trained_size
from segformer_spark.run.console import logger

_WRAPPERS = ("state_dict", "model_state", "model")
_CLASSIFIER = re.compile(r"(fc|classifier|head)\.")
_COUNTER = "num_batches_tracked"
_AROUND = ("segformer.", "encoder.", "backbone.", "model.")
"""What libraries put before an encoder's own names, one after another."""
_SHOWN = 4

State = dict[str, Tensor]


@dataclass(frozen=True)
class EncoderReport:
    """What became of a file's tensors.

    Attributes:
        loaded: names in the encoder that were found.
        missing: names that the encoder has and the file lacks.
        unexpected: names that the file has and the encoder lacks, the classifier's apart.
        left_out: names of the file's classifier or decode head.
        resized: positions that were brought to another grid.
        mismatched: names whose shapes differ.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: tuple[str, ...]
    resized: tuple[str, ...]
    mismatched: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"{len(self.loaded)} tensors"]
        for what in ("missing", "unexpected", "mismatched", "resized"):
            names: tuple[str, ...] = getattr(self, what)
            if names:
                parts.append(f"{len(names)} {what}: {_listed(names)}")
        if self.left_out:
            parts.append(f"its head is left out: {_listed(self.left_out)}")
        return "; ".join(parts)


def load_encoder(model: SegmentationModel, path: Path) -> EncoderReport:
    """Load the encoder's weights from a .safetensors, .pt or .pth file and say what was found.

    Raises:
        CheckpointError: the file cannot be read, or is of another encoder.
    """
    inside = {id(tensor) for tensor in model.encoder.state_dict(keep_vars=True).values()}
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in inside}
    stored = model.stored_names()
    prefix = _prefix([stored[name] for name in own])
    live = {stored[name].removeprefix(prefix): name for name in own}
    target = {name: own[live[name]].detach() for name in live}
    state, head = _encoder_part(read_state(path), target)
    state, resized = fit_stored_positions(model, state, target, path.parent)
    mismatched = [name for name in target.keys() & state.keys() if target[name].shape != state[name].shape]
    found = [name for name in target if name in state and name not in mismatched]
    left = [name for name in state if name not in target]
    report = EncoderReport(
        loaded=tuple(found),
        # Files from before PyTorch 0.4 have no counters; they are not used where momentum is set.
        missing=tuple(name for name in target if name not in state and not name.endswith(_COUNTER)),
        unexpected=tuple(name for name in left if not _CLASSIFIER.match(name)),
        left_out=(*head, *(name for name in left if _CLASSIFIER.match(name))),
        resized=tuple(resized),
        mismatched=tuple(sorted(mismatched)),
    )
    if report.missing or report.mismatched or report.unexpected:
        raise CheckpointError(
            f"{path}: these are not the weights of the encoder of {model.name}: {report.describe()}. "
            "Check model.name and model.encoder (segformer: model.variant)"
        )
    model.load_state_dict({live[name]: state[name] for name in found}, strict=False)
    logger.info("encoder weights from %s: %s", path.name, report.describe())
    return report


def fit_stored_positions(
    model: SegmentationModel, state: Mapping[str, Tensor], target: Mapping[str, Tensor], folder: Path
) -> tuple[State, list[str]]:
    """`fit_positions` from the grid that the weights in `folder` were trained with to the model's."""
    trained = trained_size(folder)
    before = model.position_grid(trained) if trained is not None else None
    return fit_positions(state, target, before, model.position_grid())


def read_state(path: Path) -> State:
    """A file's tensors by name; a pickle is read with weights_only.

    Raises:
        CheckpointError: it holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            check_header(path)
            tensors: State = load_file(path)
            return tensors
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the weights cannot be read: {error}") from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: this is no table of tensors by name (a state_dict)")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _prefix(names: Sequence[str]) -> str:
    """What stands before the encoder's own names in files of this model."""
    return max(set.intersection(*(_prefixes(name) for name in names)), key=len)


def _prefixes(name: str) -> set[str]:
    """All that may stand before an encoder's own name in this one: nothing, and each more of `_AROUND`."""
    prefix, found = "", {""}
    while around := next((one for one in _AROUND if name.startswith(prefix + one)), None):
        prefix += around
        found.add(prefix)
    return found


def _encoder_part(state: State, target: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """The encoder's tensors in its own names, and the names of a whole model's others."""
    prefixes = {"", *(prefix for name in state for prefix in _prefixes(name))}
    parts = {
        prefix: _today({name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)})
        for prefix in sorted(prefixes, key=len)
    }
    best = max(parts, key=lambda prefix: len(parts[prefix].keys() & target.keys()))
    return parts[best], [name for name in state if not name.startswith(best)]


def _today(state: State) -> State:
    """The names of today's torchvision."""
    return _of_flat_mobilenet(state) if "features.2.conv.6.weight" in state else state


def _of_flat_mobilenet(state: State) -> State:
    """MobileNetV2 before torchvision 0.4 had the layers of a block in one list: conv, norm, ReLU6, conv ..."""
    indices = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    without_expansion = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}

    def renamed(name: str) -> str:
        match = re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\w+)", name)
        if match is None:
            return name
        block, index, part = match.groups()
        return f"features.{block}.conv.{(without_expansion if block == '1' else indices)[index]}.{part}"

    return {renamed(name): tensor for name, tensor in state.items()}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
