from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from segformer_spark.models.weights import CARD as CARD_FILE
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
        "README.md", "SHA256SUMS", "config.json", "model.safetensors", "preprocessor_config.json",
        "segformer_spark.json",
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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", CARD_FILE, "preprocessor_config.json"])
@pytest.mark.parametrize("damage", ["flip", "zero tail", "cut", "missing"])
def test_damage_to_an_export_is_noticed(
    exported: tuple[SegFormer, Path], tmp_path: Path, name: str, damage: str
) -> None:
    folder = Path(shutil.copytree(exported[1], tmp_path / "best"))
    path = folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flip":
        # In the middle of the values, or of a text that stays JSON.
        place = len(content) // 2 if name == "model.safetensors" else content.rindex(b"5")
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        path.write_bytes(content[:-9] + (b"\0" * 9 if damage == "zero tail" else b""))
    with pytest.raises(CheckpointError, match=r"not as they were exported|cannot be|not a model|there is no model"):
        load_model(folder)


def test_files_beside_an_export_do_no_harm(exported: tuple[SegFormer, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported[1], tmp_path / "best"))
    (folder / "notes.txt").write_text("the one we sent")
    load_model(folder)
    (folder / "SHA256SUMS").unlink()
    load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": "big"}, "image_size"),
        ({"background": 9}, "background 9 is none of 3 classes"),
        ({"class_names": None}, "class_names"),
        ({"class_names": []}, "class_names"),
        ({"colors": [[0, 0, 0]]}, "1 colours of 3 classes"),
        ({"colors": [[0, 0, 0], [1, 1, 1], [0, 0, 999]]}, "from 0 to 255"),
        ({"step": -1}, "step"),
        ({"metrics": {"miou": "high"}}, "metrics"),
        ({"flip_pairs": [["left", "right"]]}, "left, right is no class"),
        ({"exif_orientation": "sideways"}, "exif_orientation"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_is_read_strictly(
    exported: tuple[SegFormer, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(exported[1], tmp_path / "best"))
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({**card, **change}))
    with pytest.raises(CheckpointError, match=message):
        read_card(folder)


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
    with pytest.raises(CheckpointError, match="no safetensors file"):
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
