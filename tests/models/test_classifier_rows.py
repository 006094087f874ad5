"""Starting from a model with other classes: a row belongs to a name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from segformer_spark.config.schema import CustomVariantConfig, ModelConfig
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.errors import CheckpointError
from segformer_spark.files.checksums import write_checksums
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.pretrained import build_model
from segformer_spark.models.registry import describe_model
from tests.tiny import TINY, export_live, untrained_card

SOURCE = ("background", "cat", "dog")


def config(name: str, pretrained: str = "none") -> ModelConfig:
    own = {
        "segformer": {"variant": "custom", "custom": CustomVariantConfig(**asdict(TINY))},
        "fcn": {},
        "vit": {"encoder": "vit_tiny_patch16_224"},
    }
    return ModelConfig(name=name, pretrained=pretrained, **own[name])  # type: ignore[arg-type]


def classifier(model: SegmentationModel) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {s: state[name] for name, s in model.stored_names().items() if s in model.classifier_names}


def exported(name: str, folder: Path) -> SegmentationModel:
    """A model whose classifier has another number in each row."""
    model = build_model(config(name), SOURCE, seed=1, image_size=(64, 64))
    with torch.no_grad():
        for value in classifier(model).values():
            value.copy_(torch.arange(1, 4).view(-1, *[1] * (value.dim() - 1)).expand_as(value))
    classes = ClassInfo(SOURCE, ((0, 0, 0),) * 3, 0)
    export_live(model, folder, untrained_card(classes, model=describe_model(config(name))))
    return model


@pytest.mark.parametrize("name", ["segformer", "fcn", "vit"])
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("background", "dog", "cat"), marks=pytest.mark.sweep),
        pytest.param(("background", "horse", "dog"), marks=pytest.mark.sweep),
        ("dog", "background"),
        ("sky", "cat", "road", "dog"),
    ],
    ids="-".join,
)
def test_rows_follow_names(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    exported(name, tmp_path)
    model = build_model(config(name, str(tmp_path)), names, seed=2, image_size=(64, 64))
    fresh = classifier(build_model(config(name), names, seed=2, image_size=(64, 64)))
    for stored, value in classifier(model).items():
        for row, own in enumerate(names):
            expected = torch.full_like(value[row], SOURCE.index(own) + 1.0) if own in SOURCE else fresh[stored][row]
            assert torch.equal(value[row], expected), (stored, own)


def test_equal_names_take_everything(tmp_path: Path) -> None:
    source = exported("segformer", tmp_path)
    model = build_model(config("segformer", str(tmp_path)), SOURCE, seed=2)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_published_model_says_names_in_its_configuration(tmp_path: Path) -> None:
    exported("segformer", tmp_path)
    (tmp_path / "segformer_spark.json").unlink()
    (tmp_path / "SHA256SUMS").unlink()
    same = build_model(config("segformer", str(tmp_path)), ("dog", "cat", "background"), seed=2)
    assert [float(row[0]) for row in classifier(same)["decode_head.classifier.weight"].flatten(1)] == [3, 2, 1]
    # Of another number of classes it has other classes: nothing is taken over, as ever.
    other = build_model(config("segformer", str(tmp_path)), ("dog", "cat"), seed=2)
    assert float(classifier(other)["decode_head.classifier.weight"].abs().max()) < 1


def test_unnamed_classes_keep_their_places(tmp_path: Path) -> None:
    exported("segformer", tmp_path)
    (tmp_path / "segformer_spark.json").unlink()
    (tmp_path / "SHA256SUMS").unlink()
    content = json.loads((tmp_path / "config.json").read_text())
    content["id2label"] = {str(number): f"LABEL_{number}" for number in range(3)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = build_model(config("segformer", str(tmp_path)), ("a", "b", "c"), seed=2)
    assert [float(row[0]) for row in classifier(model)["decode_head.classifier.weight"].flatten(1)] == [1, 2, 3]


@pytest.mark.parametrize("content", ["[]", "{}", "not json"])
def test_a_damaged_card_is_named(tmp_path: Path, content: str) -> None:
    exported("segformer", tmp_path)
    (tmp_path / "segformer_spark.json").write_text(content)
    write_checksums(tmp_path)
    with pytest.raises(CheckpointError, match="the names of its classes cannot be read"):
        build_model(config("segformer", str(tmp_path)), SOURCE, seed=2)
