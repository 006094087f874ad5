"""`evaluate`: a model on a labelled split at native resolution -> results.json, tables, figures, worst images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.config.load import ResolvedConfig
from segformer_spark.data.dataset import Image, SegmentationDataset
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.png import write_png
from segformer_spark.distributed.process_group import Group
from segformer_spark.evaluation.count import count
from segformer_spark.evaluation.pictures import draw_categories, draw_confusion, make_panel, stack_panels
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.evaluation.record import session_record
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.metrics.report import NO_OBJECT, report
from segformer_spark.metrics.spark_score import counts_for_panels, image_iou
from segformer_spark.run.atomic import write_csv, write_json
from segformer_spark.run.console import logger
from segformer_spark.run.record import host_record
from segformer_spark.run.system import now


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line says.

    Attributes:
        model: run directory or exported model folder.
        split: split of the data set.
        output: folder for the results.
        num_worst: how many of the worst images to draw.
        num_examples: how many of the first, worst, median and best images to draw in one picture each.
        inference: how the model is asked.
    """

    model: Path
    split: str
    output: Path
    num_worst: int = 12
    num_examples: int = 0
    inference: InferenceSettings = field(default_factory=InferenceSettings)


def run_evaluation(resolved: ResolvedConfig, options: EvaluateOptions, group: Group) -> dict[str, Any]:
    """Evaluate and write the results; returns the figures. Collective.

    Raises:
        UserError: model, data set and configuration do not go together.
    """
    config = resolved.config
    settings = replace(options.inference, view=resolved.overridden_inference(), num_workers=config.data.num_workers)
    session = Session.open(options.model, settings, group, config.data, options.split)
    card, dataset = session.card, session.labelled()
    started = now()
    counts, _ = count(session.predictor, dataset, session.loading, group, f"evaluating {options.split}")
    membership = [dataset.category(index) for index in range(len(dataset))]
    metrics = report(
        counts, membership, class_names=card.class_names, background=card.background, categories=dataset.categories
    )
    hosts = group.gather(host_record(group.device))

    def write() -> None:
        write_tables(options.output, metrics, counts, dataset)
        draw_confusion(np.asarray(metrics["confusion"]), card.class_names, options.output / "figures" / "confusion.png")
        draw_categories(metrics, options.output / "figures" / "scores.png")
        quality = foreground_iou(counts, dataset.classes.background)
        _draw_worst(session, quality, options)
        if options.num_examples:
            _draw_examples(session, quality, options)
        record = {
            "dataset": config.data.dataset,
            "split": options.split,
            "tta": settings.tta,
            "precision": settings.precision,
            "resolution": "native",
            "inference": session.view.config.model_dump(),
            **session_record(session, hosts, started),
        }
        write_json(options.output / "results.json", {**metrics, "record": record})

    group.on_main(write)
    if group.is_main:
        for line in table(metrics):
            logger.info("%s", line)
        logger.info("results: %s", options.output)
    return metrics


def write_tables(folder: Path, metrics: dict[str, Any], counts: EvaluationCounts, dataset: SegmentationDataset) -> None:
    """per_image.csv and confusion.csv."""
    names = dataset.classes.names
    per_image = counts.per_image.cpu().numpy()
    iou = _per_image_iou(counts)
    is_spark = {"body", "panels"} <= set(names)
    counted = (
        counts_for_panels(per_image[:, names.index("body")], per_image[:, names.index("panels")]) if is_spark else None
    )
    rows = []
    for index in range(len(dataset)):
        row: dict[str, Any] = {"image": dataset.sample_id(index)}
        if dataset.categories:
            row["category"] = dataset.categories[dataset.category(index)]
        row |= {f"iou_{name}": _decimal(iou[index, c]) for c, name in enumerate(names)}
        row |= {f"true_pixels_{name}": int(per_image[index, c, 1]) for c, name in enumerate(names)}
        if counted is not None:
            row["counts_for_panels"] = int(counted[index])
        rows.append(row)
    write_csv(folder / "per_image.csv", list(rows[0]), rows)
    matrix = [
        {"truth": name, **dict(zip(names, values, strict=True))}
        for name, values in zip(names, metrics["confusion"], strict=True)
    ]
    write_csv(folder / "confusion.csv", ["truth", *names], matrix)


def table(metrics: dict[str, Any]) -> list[str]:
    """The metrics as aligned text lines: classes, then categories, then totals."""
    lines = [f"{'class':<18}{'IoU':>9}{'Dice':>9}{'precision':>11}{'recall':>9}"]
    for name, s in metrics["per_class"].items():
        lines.append(
            f"{name:<18}{_number(s['iou']):>9}{_number(s['dice']):>9}{_number(s['precision']):>11}{_number(s['recall']):>9}"
        )
    if metrics["categories"]:
        lines.append(f"{'category':<18}{'images':>9}{'mIoU':>9}{'SPARK':>11}")
        for name, g in metrics["categories"].items():
            lines.append(f"{name:<18}{g['num_images']:>9}{_number(g['miou']):>9}{_number(g.get('spark_score')):>11}")
    for name, one in metrics.get("object_sizes", {}).items():
        values = "  ".join(f"{key} {_number(value)}" for key, value in one.items() if key != "num_images")
        what = "without an object" if name == NO_OBJECT else f"objects of {name} of the image"
        lines.append(f"{what}: {one['num_images']} images  {values}")
    keys = (
        "miou",
        "miou_void_as_error",
        "miou_without_background",
        "pixel_accuracy",
        "spark_score_body",
        "spark_score_panels",
        "spark_score",
    )
    lines.append("  ".join(f"{key} {_number(metrics[key])}" for key in keys if key in metrics))
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _decimal(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _per_image_iou(counts: EvaluationCounts) -> np.ndarray[Any, np.dtype[np.float64]]:
    """IoU (N, C); nan for a class that neither truth nor prediction has."""
    return image_iou(counts.per_image.cpu().numpy(), empty=np.nan)


def foreground_iou(counts: EvaluationCounts, background: int | None) -> NDArray[np.float64]:
    """Mean IoU (N,) of each image over the foreground classes that it or its prediction has; 1 where there are none."""
    iou = _per_image_iou(counts)
    foreground = [c for c in range(iou.shape[1]) if c != background]
    present = ~np.isnan(iou[:, foreground])
    quality = np.where(present, iou[:, foreground], 0).sum(1) / np.maximum(present.sum(1), 1)
    quality[~present.any(1)] = 1.0
    return np.asarray(quality)


def _draw_examples(session: Session, quality: NDArray[np.float64], options: EvaluateOptions) -> None:
    """examples/first.png, worst.png, median.png and best.png: Input | Truth | Prediction, one image below the other."""
    dataset, number = session.labelled(), min(options.num_examples, len(quality))
    order = [int(index) for index in np.argsort(quality, kind="stable")]
    middle = (len(order) - number) // 2
    chosen = {
        "first": list(range(number)),
        "worst": order[:number],
        "median": order[middle : middle + number],
        "best": order[::-1][:number],
    }
    for name, indices in chosen.items():
        titles = {index: f"{dataset.sample_id(index)}  mean IoU {quality[index]:.3f}" for index in indices}
        panels = [panel for _, panel in predicted_panels(session.predictor, dataset, session.loading, titles)]
        write_png(options.output / "examples" / f"{name}.png", stack_panels(panels))


def _draw_worst(session: Session, quality: NDArray[np.float64], options: EvaluateOptions) -> None:
    """The images with the lowest mean IoU over the foreground classes, worst first."""
    dataset = session.labelled()
    worst = [int(index) for index in np.argsort(quality, kind="stable")[: options.num_worst]]
    folder = options.output / "worst"
    for old in folder.glob("*.png"):
        old.unlink()
    titles = {index: f"{dataset.sample_id(index)}  mean IoU {quality[index]:.3f}" for index in worst}
    for rank, (name, panel) in enumerate(predicted_panels(session.predictor, dataset, session.loading, titles)):
        write_png(folder / f"{rank + 1:02d}_{name}.png", panel)


def predicted_panels(
    predictor: Predictor, dataset: SegmentationDataset, loading: EvalLoading, titles: Mapping[int, str]
) -> Iterator[tuple[str, Image]]:
    """Name and Input | Truth | Prediction of the images whose indices `titles` has, in its order."""
    for item, ids in predictor.predict(eval_loader(dataset, list(titles), loading)):
        sample = dataset.load(item.index)
        image, truth, predicted = (
            turn_upright(pixels, sample.orientation) for pixels in (sample.image, sample.mask, ids.cpu().numpy())
        )
        panel = make_panel(image, truth, predicted, dataset.classes, titles[item.index])
        yield dataset.sample_id(item.index), panel
