"""config.json of a foreign folder chooses sizes and classes, never code, paths or the network."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import SegformerConfig

from segformer_spark.errors import CheckpointError
from segformer_spark.files.checksums import write_checksums
from segformer_spark.models.pretrained import load_network
from segformer_spark.models.published_config import read_segformer_config
from segformer_spark.models.segformer import segformer_config
from tests.tiny import tiny_segformer

NAMES = ("background", "body", "panels")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hub folder."""
    tiny_segformer(NAMES, seed=0).network.save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_it_is_transformers_own(tmp_path: Path) -> None:
    own = segformer_config("b3", NAMES)
    own.save_pretrained(tmp_path)
    ignored = {"architectures", "_name_or_path", "transformers_version"}
    plain, found = SegformerConfig.from_pretrained(tmp_path).to_dict(), read_segformer_config(tmp_path).to_dict()
    assert {k: v for k, v in found.items() if k not in ignored} == {k: v for k, v in plain.items() if k not in ignored}


@pytest.mark.parametrize("with_digests", [False, True])
@pytest.mark.parametrize(
    "planted",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"auto_map": {"AutoConfig": "evil--configuration.Evil"}},
        {"dtype": "evil.module", "torch_dtype": "evil"},
        {"base_model_name_or_path": "/etc/passwd", "adapter": "x"},
        {"use_kernels": True, "device_map": "auto", "max_memory": {}},
    ],
)
def test_keys_that_choose_code_change_nothing(
    folder: Path, planted: dict[str, Any], with_digests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported, and no connection is opened."""
    before = {name: tensor.clone() for name, tensor in load_network(folder).state_dict().items()}
    change(folder, **planted)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    if with_digests:
        write_checksums(folder)

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    modules = set(sys.modules)
    network = load_network(folder)
    assert all((tensor == before[name]).all() for name, tensor in network.state_dict().items())
    assert network.config._attn_implementation in (None, "eager", "sdpa")
    assert not [name for name in set(sys.modules) - modules if "evil" in name or name in ("kernels", "bitsandbytes")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "its model_type is 'bert'"),
        ({"hidden_act": "evil"}, "hidden_act"),
        ({"depths": [2, 2, 2]}, "depths"),
        ({"depths": "2222"}, "depths"),
        ({"hidden_sizes": [8, 8, 8, 10**9]}, "hidden_sizes"),
        ({"hidden_sizes": [8, 8, 8, -8]}, "hidden_sizes"),
        ({"num_channels": 4}, "num_channels"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"id2label": {}}, "id2label"),
        ({"id2label": None}, "id2label"),
        ({"id2label": {"1": "a"}}, "not numbered 0, 1"),
        ({"id2label": {"x": "a"}}, "no SegFormer's configuration"),
    ],
)
def test_what_cannot_be_is_named(folder: Path, values: dict[str, Any], message: str) -> None:
    change(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        load_network(folder)


def test_weights_are_not_followed_out_of_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.safetensors"
    (folder / "model.safetensors").rename(outside)
    index = {"metadata": {}, "weight_map": {"classifier": f"../{outside.parent.name}/x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in it; weights in several files are not read"):
        load_network(folder)


@pytest.mark.parametrize("header", [0, 1, 2**24 + 1, 2**63])
def test_a_header_that_is_none(folder: Path, header: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(header.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="this is no safetensors file"):
        load_network(folder)


@pytest.mark.parametrize("kind", ["hole", "overlap", "beyond"])
def test_tensors_with_holes_or_over_each_other(folder: Path, kind: str) -> None:
    """safetensors itself refuses them."""
    offsets = {"hole": [[0, 4], [8, 12]], "overlap": [[0, 4], [2, 6]], "beyond": [[0, 4], [4, 400]]}[kind]
    header = {f"t{n}": {"dtype": "F32", "shape": [1], "data_offsets": one} for n, one in enumerate(offsets)}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_network(folder)
