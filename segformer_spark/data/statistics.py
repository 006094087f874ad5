"""Statistics of a split from its scanned items: class shares and weights, object sizes, brightness, class occupancy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.class_weights import RULES, class_weights
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.data.scan import OCCUPANCY_SIDE, ItemFacts
from segformer_spark.errors import DataError
from segformer_spark.run.figures import new_figure, save_figure

_MOST_MAPS = 24
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def summarize_split(facts: Sequence[ItemFacts], classes: ClassInfo) -> dict[str, Any]:
    """JSON-ready statistics; items that cannot be decoded are left out.

    Raises:
        DataError: no item can be decoded.
    """
    items = [item for item in facts if item.size is not None]
    if not items:
        raise DataError("no image of the split can be read; run `segformer-spark data check` to see why")
    pixels = np.asarray([item.pixels for item in items], np.int64)
    ignored = sum(item.ignored for item in items)
    every_pixel = int(pixels.sum()) + ignored
    sizes = _object_shares(items, classes)
    return {
        "num_images": len(items),
        "num_unreadable": len(facts) - len(items),
        "image_sizes": _image_sizes(items),
        "classes": {
            name: {
                "pixels": int(pixels[:, index].sum()),
                "share": float(pixels[:, index].sum() / every_pixel),
                "images_with": int((pixels[:, index] > 0).sum()),
            }
            for index, name in enumerate(classes.names)
        },
        "ignored_share": ignored / every_pixel,
        "object_box_share": _quantiles(sizes),
        "brightness": _quantiles([item.brightness for item in items]),
        "class_weights": {rule: class_weights(rule, pixels.tolist()) for rule in RULES},
    }


def object_share(item: ItemFacts, classes: ClassInfo) -> float | None:
    """Area of the box around the foreground relative to the image; None without background class or foreground."""
    if classes.background is None or item.box is None or item.size is None:
        return None
    x_min, y_min, x_max, y_max = item.box
    return (x_max - x_min + 1) * (y_max - y_min + 1) / (item.size[0] * item.size[1])


def _object_shares(items: Sequence[ItemFacts], classes: ClassInfo) -> list[float]:
    return [share for item in items if (share := object_share(item, classes)) is not None]


def draw_statistics(
    facts: Sequence[ItemFacts], classes: ClassInfo, summary: dict[str, Any], folder: Path
) -> list[Path]:
    """classes.png, images.png and class_occupancy.png."""
    paths = [folder / name for name in ("classes.png", "images.png", "class_occupancy.png")]
    _draw_classes(classes, summary, paths[0])
    _draw_images([item for item in facts if item.size is not None], classes, paths[1])
    _draw_occupancy(facts, classes, paths[2])
    return paths


def _image_sizes(items: Sequence[ItemFacts]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        assert item.size is not None
        name = f"{item.size[1]}x{item.size[0]}"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:20])


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    points = np.quantile(np.asarray(values), _QUANTILES)
    return {"mean": float(np.mean(values))} | {
        f"q{round(100 * q):02d}": float(v) for q, v in zip(_QUANTILES, points, strict=True)
    }


def _rgb(classes: ClassInfo) -> list[tuple[float, ...]]:
    return [tuple(channel / 255 for channel in color) for color in classes.colors]


def _draw_classes(classes: ClassInfo, summary: dict[str, Any], path: Path) -> None:
    names, positions = list(classes.names), np.arange(len(classes))
    figure = new_figure(min(max(9.0, 0.5 * len(names) + 6), 24.0), 3.6)
    shares, weights = figure.subplots(1, 2)
    values = [100 * summary["classes"][name]["share"] for name in names]
    shares.bar(positions, values, color=_rgb(classes), edgecolor="0.3")
    for position, value in zip(positions, values, strict=True):
        shares.annotate(f"{value:.2g}", (position, value), ha="center", va="bottom", fontsize=7)
    shares.set(title="share of all pixels", ylabel="percent, logarithmic", yscale="log")
    for number, rule in enumerate(RULES):
        weights.bar(positions + 0.27 * (number - 1), summary["class_weights"][rule], 0.25, label=rule.replace("_", " "))
    weights.set(title="class weights proposed, mean 1", ylabel="weight")
    weights.legend(fontsize="small")
    for axis in (shares, weights):
        axis.set_xticks(
            positions, names, rotation=45 if len(names) <= 40 else 90, ha="right", fontsize=8 if len(names) <= 40 else 4
        )
        axis.grid(axis="y", alpha=0.3)
    save_figure(figure, path)


def _draw_images(items: Sequence[ItemFacts], classes: ClassInfo, path: Path) -> None:
    sizes = _object_shares(items, classes)
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    if sizes:
        low = max(min(sizes), 1e-5)
        left.hist(sizes, bins=np.geomspace(low * 0.99, max(max(sizes), low) * 1.01, 30), color="tab:blue")
        left.set(xscale="log", title="object's box relative to the image", xlabel="share of the area", ylabel="images")
    else:
        present = [sum(count > 0 for count in item.pixels) for item in items]
        left.hist(present, bins=np.arange(len(classes) + 2) - 0.5, color="tab:blue")
        left.set(title="classes in an image", xlabel="number of classes", ylabel="images")
    right.hist([item.brightness for item in items], bins=30, color="tab:orange")
    right.set(title="mean brightness", xlabel="0 black, 255 white", ylabel="images")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def occupancy_maps(facts: Sequence[ItemFacts], num_classes: int) -> NDArray[np.float64]:
    """Mean share of each class per cell, (C, OCCUPANCY_SIDE, OCCUPANCY_SIDE), over all images."""
    total = np.zeros((num_classes, OCCUPANCY_SIDE, OCCUPANCY_SIDE))
    decoded = [item for item in facts if item.size is not None]
    for item in decoded:
        for index, share in item.occupancy.items():
            total[index] += share
    return total / max(1, len(decoded))


def _draw_occupancy(facts: Sequence[ItemFacts], classes: ClassInfo, path: Path) -> None:
    maps = occupancy_maps(facts, len(classes))
    foreground = [index for index in range(len(classes)) if index != classes.background]
    largest = sorted(foreground, key=lambda index: -float(maps[index].sum()))[:_MOST_MAPS]
    shown = [index for index in foreground if index in largest]
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(2.3 * columns + 0.5, 2.4 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, index in zip(axes, shown, strict=False):
        axis.imshow(maps[index], cmap="inferno", vmin=0, vmax=max(float(maps[index].max()), 1e-9))
        axis.set_title(f"{classes.names[index]}, at most {100 * maps[index].max():.1f} %", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    if len(shown) < len(foreground):
        figure.suptitle(f"the {len(shown)} largest of {len(foreground)} classes")
    save_figure(figure, path)
