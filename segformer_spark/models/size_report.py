"""Sizes of models as a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segformer_spark.config.image_size import size_text
from segformer_spark.models.size import ModelSize
from segformer_spark.run.figures import new_figure, save_figure

_FEW, _SHORT = 6, 4
"""More models, and longer names, are written aslant."""


def size_table(sizes: Sequence[ModelSize]) -> list[str]:
    """Aligned lines with a header; multiply-adds in billions (the papers' "GFLOPs")."""
    first, width = sizes[0], max(13, *(len(size.model_name) for size in sizes)) + 1
    lines = [
        f"{first.num_classes} classes, {size_text(first.image_size)} pixels",
        f"{'model':<{width}}{'parameters':>13}{'(M)':>8}{'trainable':>13}{'encoder':>13}{'head':>12}"
        f"{'G multiply-adds':>17}{'merged head':>13}{'ratio':>7}",
    ]
    for size in sizes:
        lines.append(
            f"{size.model_name:<{width}}{size.total_params:>13,}{size.total_params / 1e6:>8.2f}"
            f"{size.trainable_params:>13,}{size.encoder_params:>13,}{size.head_params:>12,}"
            f"{size.macs / 1e9:>17.1f}{size.macs_merged / 1e9:>13.1f}{size.macs / size.macs_merged:>7.2f}"
        )
    return lines


def draw_sizes(sizes: Sequence[ModelSize], path: Path) -> None:
    """Parameters and multiply-adds as bars, encoder and head apart, beside the merged head."""
    names = [_short(size.model_name) for size in sizes]
    aslant = len(sizes) > _FEW or any(len(name) > _SHORT for name in names)
    figure = new_figure(max(9, 1.3 * len(sizes)), 4.6 if aslant else 3.4)
    left, right = figure.subplots(1, 2)
    positions = range(len(sizes))
    left.bar(positions, [size.encoder_params / 1e6 for size in sizes], label="encoder")
    left.bar(
        positions,
        [size.head_params / 1e6 for size in sizes],
        bottom=[size.encoder_params / 1e6 for size in sizes],
        label="decode head",
    )
    left.set(title=f"parameters, {sizes[0].num_classes} classes", ylabel="millions")
    encoder = [(size.macs - size.macs_head) / 1e9 for size in sizes]
    right.bar([p - 0.2 for p in positions], encoder, 0.38, color="tab:blue", label="encoder")
    right.bar(
        [p - 0.2 for p in positions],
        [size.macs_head / 1e9 for size in sizes],
        0.38,
        bottom=encoder,
        color="tab:orange",
        label="head as published",
    )
    merged = [
        (position, size) for position, size in zip(positions, sizes, strict=True) if size.macs_merged != size.macs
    ]
    if merged:
        beside = [position + 0.2 for position, _ in merged]
        bases = [encoder[position] for position, _ in merged]
        heads = [size.macs_merged / 1e9 - encoder[position] for position, size in merged]
        right.bar(beside, bases, 0.38, color="tab:blue")
        right.bar(beside, heads, 0.38, bottom=bases, color="tab:green", label="merged head")
    right.set(title=f"multiply-adds at {size_text(sizes[0].image_size)} px", ylabel="billions")
    for axis in (left, right):
        axis.set_xticks(list(positions), names, **({"rotation": 40, "ha": "right"} if aslant else {}))
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend
        axis.legend(fontsize="small")
    save_figure(figure, path)


def _short(name: str) -> str:
    """B2 for segformer-b2; others as they are."""
    variant = name.removeprefix("segformer-")
    return variant.upper() if variant != name else name
