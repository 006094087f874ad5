"""README.md of an exported model, in the format of the Hugging Face Hub's model cards
(https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from segformer_spark.config.image_size import size_text

if TYPE_CHECKING:
    from segformer_spark.checkpoint.export import ModelCard

_LICENSES = {
    "segformer": "NVIDIA Source Code License for SegFormer (non-commercial), as the starting weights are NVIDIA's",
    "other": "that of the encoder's ImageNet weights, of timm's models",
}
_SHOWN = ("spark_score", "miou", "miou_without_background", "mean_dice", "pixel_accuracy")


def readme_text(card: ModelCard, *, transformers: bool, intervals: Mapping[str, Any] | None = None) -> str:
    """The text.

    Args:
        transformers: whether transformers can load the folder.
        intervals: of an evaluation's results.json, once there is one.
    """
    name = str(card.model["name"])
    title = f"{name} ({card.model['encoder']})" if card.model.get("encoder") else name
    library = "transformers" if transformers else "segformer_spark"
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-segmentation",
        "license: other",
        f"tags: [semantic-segmentation, {name}]",
        "---",
        "",
        f"# {card.run or title}: {title}",
        "",
        f"Semantic segmentation of {len(card.class_names)} classes, trained with segformer_spark on images of "
        f"{size_text(card.image_size)} pixels (height x width or side).",
        "",
        *_section("Data", [f"- data set: {card.dataset or 'not stated'}", *_orientation(card)]),
        *_section("Classes", _classes(card)),
        *_section("Metrics", _metrics(card, intervals or {})),
        *_section("Recipe", _recipe(card.recipe)),
        *_section("Licence of the weights", [f"- {_license(card)}"]),
        *_section("Use", _use(transformers=transformers)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, lines: Iterable[str]) -> list[str]:
    own = list(lines)
    return [f"## {title}", "", *own, ""] if own else []


def _orientation(card: ModelCard) -> list[str]:
    shown = "turned upright by their EXIF tag" if card.exif_orientation == "upright" else "as the files store them"
    return [f"- pixels: {shown}"]


def _classes(card: ModelCard) -> list[str]:
    rows = [
        f"| {index} | {name} | {', '.join(str(channel) for channel in color)} |"
        for index, (name, color) in enumerate(zip(card.class_names, card.colors, strict=True))
    ]
    return ["| id | name | colour (RGB) |", "|---|---|---|", *rows]


def _metrics(card: ModelCard, intervals: Mapping[str, Any]) -> list[str]:
    if not card.metrics:
        return [f"Not validated; step {card.step}."]
    rows = [f"| {name} | {card.metrics[name]:.4f} |" for name in _SHOWN if name in card.metrics]
    classes = [name for name in card.metrics if name.startswith("iou_")]
    rows += [f"| IoU {name.removeprefix('iou_')} | {card.metrics[name]:.4f} |" for name in classes]
    note = f"Validation split, step {card.step}, epoch {card.epoch}; from 0 to 1."
    table = [note, "", "| metric | value |", "|---|---|", *rows]
    bounds = [(name, intervals[name]) for name in _SHOWN if intervals.get(name)]
    if bounds:
        table += ["", f"95 % intervals of an evaluation, bootstrap over {intervals.get('over', 'images')}:", ""]
        table += [f"- {name}: {low:.4f} to {high:.4f}" for name, (low, high) in bounds]
    return table


def _recipe(recipe: dict[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in recipe.items()]


def _license(card: ModelCard) -> str:
    pretrained = str(card.recipe.get("pretrained", "none"))
    if pretrained == "none":
        return "yours to choose: training began with random weights; mind the licence of the data"
    if pretrained in ("ade20k", "cityscapes", "imagenet"):
        return _LICENSES["segformer" if card.model["name"] == "segformer" else "other"]
    return f"that of the starting weights ({pretrained})"


def _use(*, transformers: bool) -> list[str]:
    lines = ["```python", "from segformer_spark import load", "", 'model = load("FOLDER")',
             'model.predict("image.jpg").save("masks")', "```"]  # fmt: skip
    if transformers:
        lines += [
            "",
            "Or with transformers alone:",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            'segment = pipeline("image-segmentation", "FOLDER")',
            'print(segment("image.jpg"))',
            "```",
        ]
    return lines
