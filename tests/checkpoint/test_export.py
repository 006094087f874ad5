from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, SegformerForSemanticSegmentation, pipeline

from segformer_spark.checkpoint.export import ModelCard, export_model, load_model, read_card
from segformer_spark.config.schema import ModelConfig
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading, file_loader
from segformer_spark.data.transforms import normalize_images
from segformer_spark.errors import CheckpointError, ConfigError
from segformer_spark.models.pretrained import build_model
from segformer_spark.models.registry import describe_model
from segformer_spark.models.segformer import SegFormer, portable_names, segformer_config
from tests.tiny import tiny_segformer

CARD = ModelCard(
    dataset="spark",
    class_names=("background", "body", "panels"),
    colors=((0, 0, 0), (255, 0, 0), (0, 0, 255)),
    background=0,
    image_size=(64, 64),
    inference={"crops": "two_pass", "crop_margin": 0.5},
    step=10,
    epoch=1,
    metrics={"miou": 0.5},
    run="x",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[SegFormer, Path]:
    model = tiny_segformer(CARD.class_names, seed=2).eval()
    with torch.no_grad():
        for buffer in model.network.decode_head.batch_norm.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2.0)
    names = portable_names(model)
    weights = {names[live]: value.clone() for live, value in model.state_dict().items()}
    folder = tmp_path_factory.mktemp("export") / "best"
    export_model(model, weights, names, folder, CARD)
    return model, folder


def test_plain_transformers_gives_the_same_weights_and_logits(exported: tuple[SegFormer, Path]) -> None:
    model, folder = exported
    plain, report = SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[f"network.{name}"]), name
    images = torch.randn(2, 3, 70, 64)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(images).logits, model(images), rtol=1e-5, atol=1e-5)
    assert plain.config.id2label == {0: "background", 1: "body", 2: "panels"}
    assert plain.config.architectures == ["SegformerForSemanticSegmentation"]


def test_file_names_are_the_published_ones(exported: tuple[SegFormer, Path]) -> None:
    _, folder = exported
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "segformer_spark.json",
    ]  # fmt: skip
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in load_file(folder / "model.safetensors")


def test_loading_back_gives_identical_logits(exported: tuple[SegFormer, Path]) -> None:
    model, folder = exported
    again, card = load_model(folder)
    assert card == CARD
    assert not again.training
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


def test_the_image_processor_prepares_what_the_model_was_trained_on(
    exported: tuple[SegFormer, Path], tmp_path: Path
) -> None:
    _, folder = exported
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    theirs = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    ((item,),) = file_loader([tmp_path / "x.png"], [0], EvalLoading(InferenceView((64, 64)), 1, 0))
    torch.testing.assert_close(theirs, normalize_images(item.pixels[None]), rtol=1e-4, atol=1e-4)


def test_it_works_as_a_pipeline(exported: tuple[SegFormer, Path]) -> None:
    _, folder = exported
    result = pipeline("image-segmentation", model=str(folder))(Image.new("RGB", (50, 40)))
    assert {item["label"] for item in result} <= set(CARD.class_names)
    assert result[0]["mask"].size == (50, 40)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model exported by"):
        read_card(tmp_path)
    (tmp_path / "segformer_spark.json").write_text(json.dumps({"dataset": "x"}))
    with pytest.raises(CheckpointError, match="not a model exported by"):
        read_card(tmp_path)


def test_the_view_is_part_of_the_model() -> None:
    view = CARD.view()
    assert (view.size, view.config.crops, view.config.crop_margin) == ((64, 64), "two_pass", 0.5)
    assert CARD.view(crops="none").config.crops == "none"
    with pytest.raises(ConfigError, match="run x cannot be shown images in this way: inference.crops goes with"):
        CARD.view(resize="native")


@pytest.mark.parametrize(("resize", "resizes"), [("image_size", True), ("native", False)])
def test_the_processor_resizes_as_the_model_was_scored(
    exported: tuple[SegFormer, Path], tmp_path: Path, resize: str, resizes: bool
) -> None:
    model, _ = exported
    names = portable_names(model)
    weights = {names[live]: value for live, value in model.state_dict().items()}
    export_model(model, weights, names, tmp_path / "m", replace(CARD, inference={"resize": resize}))
    assert json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())["do_resize"] is resizes


@pytest.mark.parametrize("name", ["unet", "hiera", "fcn", "vit"])
def test_other_models_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    encoder = {"unet": "resnet18", "hiera": "hiera_tiny_224", "vit": "vit_tiny_patch16_224"}.get(name)
    config = ModelConfig(name=name, encoder=encoder, pretrained="none")
    model = build_model(config, CARD.class_names, 0, (64, 64)).eval()
    names = model.stored_names()
    weights = {names[live]: value.clone() for live, value in model.state_dict().items()}
    export_model(model, weights, names, tmp_path / "best", replace(CARD, model=describe_model(config)))
    again, card = load_model(tmp_path / "best")
    assert card.model == describe_model(config)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))
    (tmp_path / "best" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "best")


def test_stored_names_are_the_librarys(tmp_path: Path) -> None:
    config = ModelConfig(name="unet", encoder="resnet18", pretrained="none")
    model = build_model(config, CARD.class_names, 0, (64, 64)).eval()
    names = model.stored_names()
    weights = {names[live]: value.clone() for live, value in model.state_dict().items()}
    export_model(model, weights, names, tmp_path / "best", replace(CARD, model=describe_model(config)))
    library = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
    library.load_state_dict(load_file(tmp_path / "best" / "model.safetensors"))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(library(images), model(images))


def test_published_segformers_have_a_card_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "segformer-b0-finetuned-ade-640-640"
    network = SegformerForSemanticSegmentation(segformer_config("b0", [f"class {i}" for i in range(150)]))
    network.save_pretrained(folder)
    model, card = load_model(folder)
    assert (model.num_classes, card.image_size, card.class_names[149]) == (150, (640, 640), "class 149")
    assert len(set(card.colors)) > 100
    assert card.background is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(CheckpointError, match="neither a model exported by segformer_spark nor a published SegFormer"):
        load_model(folder)
