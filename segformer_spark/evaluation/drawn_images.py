"""Pictures of an evaluation: worst/, examples/ and gallery/, of one more prediction of their images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.data.dataset import Image, Mask, SegmentationDataset
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.png import write_png
from segformer_spark.evaluation.gallery import Gallery, choose, clear_gallery, ranked
from segformer_spark.evaluation.pictures import error_tile, make_panel, stack_panels
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.evaluation.result_folder import foreground_iou, picture_titles
from segformer_spark.evaluation.session import Session
from segformer_spark.metrics.detailed import Description
from segformer_spark.metrics.image_counts import ImageCounts

_GALLERY_EACH = 8


@dataclass(frozen=True)
class DrawnImage:
    """An image with both its masks, turned as people see it."""

    index: int
    image: Image
    truth: Mask
    predicted: Mask


def draw_images(
    session: Session,
    indices: Sequence[int],
    counts: ImageCounts,
    of: Description,
    metrics: Mapping[str, Any],
    folder: Path,
    *,
    num_worst: int,
    num_examples: int,
) -> None:
    """Draw the images with the lowest mean IoU of the foreground (worst/), a gallery unless `num_worst` is 0, and the
    first, worst, median and best below each other (examples/). What an earlier evaluation drew is removed.

    Args:
        indices: of the images in the data set, in the order of the counts.
        metrics: as results.json has them.
    """
    for name in ("worst", "examples"):
        shutil.rmtree(folder / name, ignore_errors=True)
    clear_gallery(folder)
    quality = foreground_iou(counts, of)
    titles = picture_titles(counts, of, quality)
    worst = ranked(quality, num_worst)["worst"]
    examples = {"first": list(range(min(num_examples, len(quality)))), **ranked(quality, num_examples)}
    gallery = None
    if num_worst:
        suspected = _positions(metrics, of.names)
        chosen = choose(counts, quality, min(_GALLERY_EACH, num_worst), suspected)
        gallery = Gallery(folder, chosen, of.names, quality, session.labelled().classes)
    needed = [*worst, *(at for own in examples.values() for at in own), *(gallery.chosen.positions if gallery else [])]
    position_of = {indices[at]: at for at in dict.fromkeys(needed)}
    with_panel = {at for own in (worst, *examples.values()) for at in own}
    panels: dict[int, Image] = {}
    dataset = session.labelled()
    for drawn in predicted_images(session.predictor, dataset, session.loading, list(position_of)):
        at = position_of[drawn.index]
        if gallery is not None and at in gallery.chosen.positions:
            gallery.add(at, drawn.image, drawn.truth, drawn.predicted)
        if at in with_panel:
            panels[at] = panel_of(drawn, dataset, titles[at])
    for rank, at in enumerate(worst):
        write_png(folder / "worst" / f"{rank + 1:02d}_{dataset.sample_id(indices[at])}.png", panels[at])
    for name, own in examples.items():
        if own:
            write_png(folder / "examples" / f"{name}.png", stack_panels([panels[at] for at in own]))
    if gallery is not None:
        gallery.finish()


def _positions(metrics: Mapping[str, Any], names: Sequence[str]) -> list[int]:
    """The images with suspected label errors."""
    missing = metrics.get("missing_points") or {}
    position_of = {name: at for at, name in enumerate(names)}
    return [position_of[one["image"]] for one in missing.get("suspected_labels", ())]


def predicted_images(
    predictor: Predictor, dataset: SegmentationDataset, loading: EvalLoading, indices: Sequence[int]
) -> Iterator[DrawnImage]:
    """The images at these indices, in their order."""
    for item, ids in predictor.predict(eval_loader(dataset, indices, loading)):
        sample = dataset.load(item.index)
        image, truth, predicted = (
            turn_upright(pixels, sample.orientation) for pixels in (sample.image, sample.mask, ids.cpu().numpy())
        )
        yield DrawnImage(item.index, image, truth, predicted)


def panel_of(drawn: DrawnImage, dataset: SegmentationDataset, title: str) -> Image:
    """Input | Truth | Prediction | Error."""
    error = {"Error": error_tile(drawn.image, drawn.truth, drawn.predicted, len(dataset.classes))}
    return make_panel(drawn.image, drawn.truth, drawn.predicted, dataset.classes, title, error)
