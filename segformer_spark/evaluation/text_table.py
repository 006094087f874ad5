"""The metrics of an evaluation as lines of text."""

from __future__ import annotations

from typing import Any

from segformer_spark.metrics.report import NO_OBJECT


def text_table(metrics: dict[str, Any]) -> list[str]:
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
    bounds = metrics["intervals"]
    for key in ("spark_score", "miou"):
        if bounds.get(key) is not None:
            low, high = bounds[key]
            lines.append(f"{key}: 95 % interval {low:.4f} to {high:.4f}, bootstrap over {bounds['over']}")
    lines += _missing(metrics["missing_points"])
    edges = metrics["edges"]
    more = {
        "boundary IoU at 2 px": metrics["boundary_iou"]["2 px"]["mean"],
        "boundary F1 within 2": edges["boundary_f1"]["2"]["mean"],
        "NSD within 2": edges["nsd"]["2"]["mean"],
        "HD95": edges["hd95"]["mean"],
        "mIoU over images": metrics["miou_i"],
        "over classes": metrics["miou_c"],
        "calibration error": None if metrics["calibration"] is None else metrics["calibration"]["ece"],
    }
    lines.append("  ".join(f"{name} {_number(value)}" for name, value in more.items()))
    return lines


def _missing(split: dict[str, Any] | None) -> list[str]:
    """The parts of what is missing to a perfect score, in points."""
    if split is None:
        return []
    parts = "  ".join(f"{name} {100 * points:+.2f}" for name, points in split["parts"].items() if points)
    return [f"missing to a perfect {split['metric']}: {100 * split['missing']:.2f} points: {parts}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
