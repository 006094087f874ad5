"""The configuration that `data init` writes, with the reason of every choice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segformer_spark.config.data_schema import MAX_PIXELS
from segformer_spark.config.image_size import size_text
from segformer_spark.data.flip_pairs import sided_names
from segformer_spark.data.init.class_table import ClassRow, ClassTable

_AREA, _STEP = 512 * 512, 32
_STEPS, _EPOCHS = 1500, (20, 300)
_VALIDATIONS = 30


@dataclass(frozen=True)
class FolderSummary:
    """What was found, and what follows.

    Attributes:
        files: folder of the lists; mask_root: of masks that were drawn, or None.
        num_images: by split.
        shares, images_with: per class.
        ignored: share of the pixels without a label.
        image_size: (height, width) of a typical image.
        has_weights: whether there are weights of B0 from ADE20K in weights/.
        notes: conclusions.
    """

    name: str
    command: str
    folder: Path
    files: Path
    mask_root: Path | None
    table: ClassTable
    num_images: Mapping[str, int]
    shares: Sequence[float]
    images_with: Sequence[int]
    ignored: float
    class_weights: Sequence[float]
    image_size: tuple[int, int]
    exif_orientation: str
    max_pixels: int
    has_weights: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    def lines(self) -> list[str]:
        """Classes and conclusions, for the log."""
        width = max(len(row.name) for row in self.table.rows)
        total = sum(self.num_images.values())
        rows = [
            f"  {row.name:<{width}}  {_origin(row)}  {share:8.3%} of the pixels, in {number} of {total} images"
            for row, share, number in zip(self.table.rows, self.shares, self.images_with, strict=True)
        ]
        if self.ignored:
            rows.append(f"  {self.ignored:.3%} of the pixels have no label")
        splits = ", ".join(f"{number} {split}" for split, number in self.num_images.items())
        return [f"{total} images with masks: {splits}", *rows, *self.notes]


def _origin(row: ClassRow) -> str:
    return f"colour {list(row.color)!s:<16}" if row.label is None else f"number {row.label:>3}"


def configuration_text(summary: FolderSummary) -> str:
    """The YAML file."""
    size = fitting_size(summary.image_size)
    batch, epochs = batch_and_epochs(summary.num_images["train"])
    pretrained = summary.has_weights
    sections = [
        _header(summary),
        f"experiment: {{name: {_quoted(summary.name)}, seed: 42}}\n",
        _data(summary, size),
        _model(pretrained=pretrained),
        _training(summary, batch, epochs, pretrained=pretrained),
        _augmentation(),
    ]
    return "\n".join(sections)


def fitting_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the input: multiples of 32 in the ratio of the images, of about 512 x 512 pixels at most."""
    height, width = image_size
    factor = min(1.0, math.sqrt(_AREA / (height * width)))
    sides = [max(_STEP, round(side * factor / _STEP) * _STEP) for side in (height, width)]
    return sides[0], sides[1]


def batch_and_epochs(num_train: int) -> tuple[int, int]:
    """Images of a step, and epochs of about 1,500 steps in all."""
    batch = min(8, max(1, num_train // 4))
    low, high = _EPOCHS
    return batch, min(high, max(low, math.ceil(_STEPS / (num_train // batch))))


def _header(summary: FolderSummary) -> str:
    lines = [f"# Made by: {summary.command}", *(f"# {line}" for line in summary.lines())]
    lines += [
        "#",
        f"#   segformer-spark data preview --config {summary.name}.yaml --output sheet.png",
        f"#   segformer-spark train --config {summary.name}.yaml",
        f"#   segformer-spark predict runs/{summary.name} NEW_IMAGES/",
        "# On a cluster:",
        f"#   CONFIG={summary.name}.yaml sbatch slurm/segformer_train.sh",
    ]
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def _data(summary: FolderSummary, size: tuple[int, int]) -> str:
    table = summary.table
    sided = sided_names([row.name for row in table.rows])
    value = str(size[0]) if size[0] == size[1] else f"[{size[0]}, {size[1]}]"
    typical = size_text(summary.image_size)
    lines = [
        "data:",
        "  dataset: folder",
        f"  root: {_quoted(str(summary.folder))}",
        f"  image_size: {value}    # input of the model; a typical image is {typical} (height x width)",
        f"  manifest: {_quoted(str(summary.files / 'manifest.json'))}    # what `data check` writes",
        "  num_workers: 2    # processes that read images",
        f"  exif_orientation: {summary.exif_orientation}    # masks go with pixels as files "
        + ("show them" if summary.exif_orientation == "upright" else "store them"),
    ]
    if summary.max_pixels != MAX_PIXELS:
        lines.append(f"  max_pixels: {summary.max_pixels}")
    if table.nearest_color:
        lines.append("  nearest_color: true    # pixels between the colours get the nearest class")
    if sided:
        pairs = ", ".join(f"[{_quoted(one)}, {_quoted(other)}]" for one, other in sided)
        lines.append(f"  flip_pairs: [{pairs}]    # a left-right flip exchanges them; [] if they are no sides")
    lines += ["  folder:", f"    lists: {_quoted(str(summary.files))}    # train.txt and val.txt: image, tab, mask"]
    if summary.mask_root is not None:
        lines.append(f"    mask_root: {_quoted(str(summary.mask_root))}    # masks drawn from the polygons")
    kind = "one number per pixel" if table.masks == "index" else "one colour per class"
    lines.append(f"    masks: {table.masks}    # {kind}")
    if table.masks == "index":
        ignore = "null" if table.ignore_id is None else table.ignore_id
        lines.append(f"    ignore_id: {ignore}    # label of pixels that neither train nor count")
    if table.background is not None:
        lines.append(f"    background: {_quoted(table.background)}    # left out of mIoU without background")
    lines.append("    classes:    # rename them here; the order is that of class ids in predictions")
    for row in table.rows:
        label = "" if row.label is None else f", id: {row.label}"
        lines.append(f"    - {{name: {_quoted(row.name)}, color: {list(row.color)}{label}}}")
    return "\n".join(lines) + "\n"


def _model(*, pretrained: bool) -> str:
    if pretrained:
        start = "  pretrained: ade20k    # found in weights/"
    else:
        start = (
            "  # Random weights, since there are none in weights/. Pretrained ones give far better results: run\n"
            "  #   segformer-spark weights fetch --variant b0 --source ade20k\n"
            "  # then set pretrained: ade20k and training.optimizer.lr: 6e-5.\n"
            "  pretrained: none"
        )
    return f"model:\n  variant: b0    # the smallest and fastest; b2 or b3 on a GPU\n{start}\n"


def _training(summary: FolderSummary, batch: int, epochs: int, *, pretrained: bool) -> str:
    steps = summary.num_images["train"] // batch
    every = max(1, epochs // _VALIDATIONS)
    weights = ", ".join(f"{weight:.3g}" for weight in summary.class_weights)
    lr = "6e-5" if pretrained else "6e-4"
    return "\n".join(
        [
            "training:",
            f"  epochs: {epochs}    # of {steps} steps: about {epochs * steps} in all",
            f"  batch_size: {batch}    # images per GPU and step",
            "  precision: tf32    # bf16 is faster on A100 and H100; on a CPU this is fp32",
            "  selection_metric: miou    # the best model is the one with the highest mean IoU",
            f"  optimizer: {{lr: {lr}, head_lr_multiplier: {10 if pretrained else 1}}}",
            "  scheduler: {warmup_epochs: 1}",
            "  loss:",
            "    type: ce_dice",
            f"    class_weights: [{weights}]    # median frequency (Eigen and Fergus 2015), of train",
            f"  validation: {{every_epochs: {every}}}",
            "",
        ]
    )


def _augmentation() -> str:
    return "\n".join(
        [
            "augmentation:    # what keeps an image plausible: most scenes have an up and a down",
            "  vertical_flip: 0.0    # 0.5 for pictures from above, or through a microscope",
            "  rotation_degrees: 10.0",
            "",
        ]
    )


def _quoted(text: str) -> str:
    """A YAML scalar: plain where it is plain text, else in double quotes, which JSON's are."""
    plain = text.replace("_", "").replace("/", "").replace(".", "").replace("-", "").isalnum() and text[0].isalpha()
    return text if plain and text.lower() not in ("true", "false", "null") else json.dumps(text, ensure_ascii=False)
