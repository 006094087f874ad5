"""Real loading code on files that the tests write, and a small server in place of the hub."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import load_file, save_file
from transformers import SegformerForImageClassification, SegformerForSemanticSegmentation

from segformer_spark.config.schema import ModelConfig
from segformer_spark.config.variants import VARIANTS
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.models.pretrained import build_model, fetch_encoder, fetch_weights, load_network
from segformer_spark.models.segformer import portable_names, segformer_config
from segformer_spark.models.weights import SOURCES, repository_id, weights_folder

NAMES = ["background", "body", "panels"]


def ade20k_like(folder: Path) -> SegformerForSemanticSegmentation:
    torch.manual_seed(11)
    network = SegformerForSemanticSegmentation(segformer_config("b0", [str(i) for i in range(150)]))
    network.save_pretrained(folder)
    return network


def config(weights: Path, **settings: object) -> ModelConfig:
    return ModelConfig(variant="b0", weights_dir=str(weights), **settings)  # type: ignore[arg-type]


def test_published_ids() -> None:
    ids = {repository_id(variant, source) for variant in VARIANTS for source in SOURCES}
    assert len(ids) == 18
    assert repository_id("b5", "ade20k") == "nvidia/segformer-b5-finetuned-ade-640-640"
    assert repository_id("b2", "ade20k") == "nvidia/segformer-b2-finetuned-ade-512-512"
    assert repository_id("b3", "cityscapes") == "nvidia/segformer-b3-finetuned-cityscapes-1024-1024"
    assert repository_id("b1", "imagenet") == "nvidia/mit-b1"


def test_ade20k_start_takes_all_but_the_classifier(tmp_path: Path) -> None:
    source = ade20k_like(weights_folder(tmp_path, "b0", "ade20k"))
    model = build_model(config(tmp_path, pretrained="ade20k"), NAMES, seed=1)
    reference = source.state_dict()
    for name, value in model.network.state_dict().items():
        if "classifier" in name:
            assert value.shape[0] == 3
        else:
            assert torch.equal(value, reference[name]), name
    again = build_model(config(tmp_path, pretrained="ade20k"), NAMES, seed=1)
    assert torch.equal(model.network.decode_head.classifier.weight, again.network.decode_head.classifier.weight)
    assert model.network.config.id2label == dict(enumerate(NAMES))


def test_imagenet_start_takes_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = SegformerForImageClassification(segformer_config("b0", [str(i) for i in range(10)]))
    source.save_pretrained(weights_folder(tmp_path, "b0", "imagenet"))
    model = build_model(config(tmp_path, pretrained="imagenet"), NAMES, seed=1)
    reference = source.segformer.state_dict()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, reference[name]), name
    fresh = build_model(config(tmp_path, pretrained="none"), NAMES, seed=1)
    assert torch.equal(model.network.decode_head.linear_fuse.weight, fresh.network.decode_head.linear_fuse.weight)


def test_an_encoder_comes_from_a_file_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SegformerForImageClassification(segformer_config("b0", NAMES))
    source.save_pretrained(tmp_path / "mit")
    whole = ade20k_like(tmp_path / "whole")
    monkeypatch.setattr(logging.getLogger("segformer_spark"), "propagate", True)
    for folder, network, left_out in (("mit", source, "classifier.bias"), ("whole", whole, "decode_head.batch_norm")):
        file = tmp_path / folder / "model.safetensors"
        with caplog.at_level(logging.INFO, "segformer_spark"):
            model = build_model(config(tmp_path, pretrained=str(file)), NAMES, seed=1)
        assert f"its head is left out: {left_out}" in caplog.text
        reference = network.segformer.state_dict()
        assert all(torch.equal(value, reference[name]) for name, value in model.encoder.state_dict().items())


def test_what_an_encoders_file_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    SegformerForImageClassification(segformer_config("b0", NAMES)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    lost = next(name for name in state if name.endswith("proj.weight"))
    state["segformer.encoder.more.weight"] = torch.zeros(1)
    save_file({name: value for name, value in state.items() if name != lost}, file)
    known = lost.removeprefix("segformer.encoder.")
    with pytest.raises(CheckpointError, match=rf"1 missing: {re.escape(known)}; 1 unexpected: more\.weight.*variant"):
        build_model(config(tmp_path, pretrained=str(file)), NAMES, seed=1)


def test_local_folder(tmp_path: Path) -> None:
    source = ade20k_like(tmp_path / "mine")
    model = build_model(config(tmp_path, pretrained=str(tmp_path / "mine")), NAMES, seed=1)
    assert torch.equal(model.network.decode_head.linear_fuse.weight, source.decode_head.linear_fuse.weight)


@pytest.mark.parametrize("pretrained", [*SOURCES, "no/such/folder"])
def test_missing_weights_are_an_error_and_never_a_random_start(tmp_path: Path, pretrained: str) -> None:
    with pytest.raises(CheckpointError) as error:
        build_model(config(tmp_path / "weights", pretrained=pretrained), NAMES, seed=1)
    assert "model.safetensors does not exist" in str(error.value)
    if pretrained in SOURCES:
        assert f"weights fetch --variant b0 --source {pretrained}" in str(error.value)
        assert str(tmp_path / "weights") in str(error.value)


def test_weights_of_another_variant_are_refused(tmp_path: Path) -> None:
    ade20k_like(tmp_path / "b0")
    with pytest.raises(CheckpointError, match=r"do not fit this model.*model\.variant"):
        build_model(ModelConfig(variant="b1", pretrained=str(tmp_path / "b0")), NAMES, seed=1)


def test_weights_of_a_deeper_variant_are_refused(tmp_path: Path) -> None:
    """B2 to B5 share all widths: nothing is missing, but blocks would be left out."""
    deep = segformer_config("b0", NAMES)
    deep.depths = [2, 2, 3, 2]
    SegformerForSemanticSegmentation(deep).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="left over"):
        build_model(config(tmp_path, pretrained=str(tmp_path)), NAMES, seed=1)


def test_an_encoder_is_no_whole_model(tmp_path: Path) -> None:
    SegformerForImageClassification(segformer_config("b0", NAMES)).save_pretrained(tmp_path / "mit")
    with pytest.raises(CheckpointError, match="do not fit"):
        build_model(config(tmp_path, pretrained=str(tmp_path / "mit")), NAMES, seed=1)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_damaged_files_are_errors(tmp_path: Path, share: float) -> None:
    ade20k_like(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_network(tmp_path)


class Hub:
    """Answers as the hub does for the files of one repository folder."""

    def __init__(self, folder: Path) -> None:
        self.requested: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                hub.requested.append(self.path)
                file = folder / self.path.rpartition("/")[2]
                if "/resolve/" not in self.path or not file.is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = file.read_bytes()
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "remote").mkdir()
    server = Hub(tmp_path / "remote")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.server.shutdown()


def test_fetch_brings_safetensors(hub: Hub, tmp_path: Path) -> None:
    source = ade20k_like(tmp_path / "remote")
    fetched = fetch_weights("b0", "ade20k", tmp_path / "weights")
    assert fetched.folder == tmp_path / "weights" / "segformer-b0-finetuned-ade-512-512"
    assert not fetched.converted
    assert hashlib.sha256((fetched.folder / "model.safetensors").read_bytes()).hexdigest() == fetched.sha256
    record = json.loads((fetched.folder / "fetched.json").read_text())
    assert record["sha256"] == fetched.sha256
    assert sorted(p.name for p in fetched.folder.iterdir()) == ["config.json", "fetched.json", "model.safetensors"]
    model = build_model(config(tmp_path / "weights", pretrained="ade20k"), NAMES, seed=1)
    assert torch.equal(model.network.decode_head.linear_fuse.weight, source.decode_head.linear_fuse.weight)


def test_fetch_brings_an_encoder(hub: Hub, tmp_path: Path) -> None:
    source = torchvision.models.resnet18(weights=None)
    save_file(source.state_dict(), tmp_path / "remote" / "model.safetensors")
    fetched = fetch_encoder("resnet18", tmp_path / "weights")
    assert sorted(p.name for p in fetched.folder.iterdir()) == ["fetched.json", "model.safetensors"]
    assert json.loads((fetched.folder / "fetched.json").read_text())["repository"] == "timm/resnet18.tv_in1k"
    settings = {"name": "unet", "encoder": "resnet18", "pretrained": "imagenet"}
    model = build_model(ModelConfig(**settings, weights_dir=str(tmp_path / "weights")), NAMES, seed=1)
    assert torch.equal(model.encoder.state_dict()["layer4.1.conv2.weight"], source.layer4[1].conv2.weight)
    with pytest.raises(UserError, match="mobilenet_v2: no ImageNet weights"):
        fetch_encoder("mobilenet_v2", tmp_path / "weights")


def test_fetch_converts_a_bin_once(hub: Hub, tmp_path: Path) -> None:
    source = ade20k_like(tmp_path / "remote")
    safe = tmp_path / "remote" / "model.safetensors"
    stored = load_file(safe)
    torch.save(stored, tmp_path / "remote" / "pytorch_model.bin")
    safe.unlink()
    fetched = fetch_weights("b0", "ade20k", tmp_path / "weights")
    assert fetched.converted
    assert not list(fetched.folder.glob("*.bin"))
    model = build_model(config(tmp_path / "weights", pretrained="ade20k"), [str(i) for i in range(150)], seed=1)
    names = portable_names(model)
    for live, value in model.state_dict().items():
        assert torch.equal(value, stored[names[live]])
    assert torch.equal(model.network.decode_head.classifier.weight, source.decode_head.classifier.weight)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/segformer_spark_evil",)


def test_a_bin_cannot_run_code(hub: Hub, tmp_path: Path) -> None:
    ade20k_like(tmp_path / "remote")
    (tmp_path / "remote" / "model.safetensors").unlink()
    torch.save({"x": Evil()}, tmp_path / "remote" / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        fetch_weights("b0", "ade20k", tmp_path / "weights")
    assert not Path("/tmp/segformer_spark_evil").exists()
    assert not weights_folder(tmp_path / "weights", "b0", "ade20k").exists()


def test_no_network_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # its waits between tries

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(UserError, match="cannot be reached"):
        fetch_weights("b0", "ade20k", tmp_path / "weights")
    assert not list((tmp_path / "weights").iterdir())


def test_a_whole_model_of_the_librarys_layout_starts_with_new_classes(tmp_path: Path) -> None:
    """Study C's DeepLabV3+ was trained before: a folder as segmentation_models_pytorch publishes it."""
    library = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=19)
    library.save_pretrained(tmp_path)
    own = ModelConfig(name="deeplabv3plus", encoder="mobilenet_v2", pretrained=str(tmp_path))
    model = build_model(own, ["a", "b", "c"], seed=1)
    theirs = library.state_dict()
    names = model.stored_names()
    for name, value in model.state_dict().items():
        if names[name] in model.classifier_names:
            assert len(value) == 3
        else:
            torch.testing.assert_close(value, theirs[names[name]], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="the weights do not fit this model"):
        build_model(own.model_copy(update={"encoder": "resnet18"}), ["a", "b", "c"], seed=1)
