"""`study-demo`: all of the comparison study at toy size on this machine, ending in one report with every figure."""

from __future__ import annotations

import csv
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.anomaly.methods import METHODS
from segformer_spark.config.load import project_folder
from segformer_spark.config.study import read_study
from segformer_spark.data.demo.once import render_once
from segformer_spark.data.demo.streets import write_street_set
from segformer_spark.files.json_file import read_json
from segformer_spark.report.page import Page
from segformer_spark.run.console import duration, logger
from segformer_spark.run.verb_process import run_verb, set_options
from segformer_spark.study.execute import plan_runs
from segformer_spark.study.figures import CURVES
from segformer_spark.study.report import VOID_LEFT_OUT

_STUDIES = project_folder("configs") / "study"
_SIZE = (96, 160)


@dataclass(frozen=True)
class StudyDemoOptions:
    """What the command line says; `num_images` are those of train, val and test; no `seeds` are all."""

    data_root: Path
    output: Path
    num_images: tuple[int, int, int]
    num_pairs: int
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()


def run_study_demo(options: StudyDemoOptions) -> Path:
    """Do everything and write the report; returns its path. What was finished before is kept.

    Raises:
        UserError: a step failed; its own message stands above.
    """
    started = time.monotonic()
    output = options.output
    overrides = [f"data.root={options.data_root}", f"output.save_path={output}/runs/{{name}}", *options.overrides]
    settings = set_options(overrides)
    if options.seeds:
        settings += ["--seeds", *map(str, options.seeds)]
    if _render(options) and (output / "runs").is_dir():
        logger.info("%s: runs on other images are removed", output / "runs")
        shutil.rmtree(output / "runs")
    sizes, comparison, ablation = output / "params", output / "models", output / "ablation"
    files = ["--json", f"{sizes}/params.json", "--figure", f"{sizes}/params.png"]
    run_verb("sizes of all models", ["params", "--num-classes", "13", "--image-size", "512", *files])
    models = _STUDIES / "demo_models.yaml"
    run_verb("comparison", ["compare", "run", str(models), "--output", str(comparison), *settings])
    augmentations = str(_STUDIES / "demo_ablation.yaml")
    run_verb("ablation", ["ablate", "run", augmentations, "--output", str(ablation), *settings])
    compared = plan_runs(read_study(models), overrides, None, options.seeds)
    run = compared[0].directory.path
    run_verb("anomaly statistics", ["anomaly", "fit", str(run)])
    anomaly = output / "anomaly"
    shown = ["--methods", *METHODS, "--panels", "1", "--output", str(anomaly)]
    run_verb("anomaly scores", ["anomaly", "eval", str(run), *shown])
    pairs, agreement = output / "pairs", output / "agreement"
    run_verb("pairs", ["agreement", "make-demo", "--root", str(pairs), "--pairs", str(options.num_pairs)])
    # JSON is YAML, too. The first seed of each model stays: later ones do not replace it.
    first = {one.run.model: str(one.directory.path) for one in reversed(compared)}
    study_file = output / "agreement.yaml"
    study_file.write_text(json.dumps({"models": dict(sorted(first.items()))}) + "\n", encoding="utf-8")
    rated = ["--pairs", str(pairs), "--ratings", str(pairs / "ratings.csv"), "--repeats", "2000"]
    run_verb("agreement", ["agreement", "run", "--study", str(study_file), *rated, "--output", str(agreement)])
    path = output / "report.html"
    _report(output, run.name, time.monotonic() - started).write(path)
    return path


def _render(options: StudyDemoOptions) -> bool:
    """Render the set unless it is there; whether it was rendered anew."""
    root, numbers = options.data_root, options.num_images
    wanted = {"numbers": list(numbers), "size": list(_SIZE)}
    return render_once(root, wanted, lambda: write_street_set(root, numbers=numbers, size=_SIZE))


def _report(output: Path, run: str, seconds: float) -> Page:
    """One page with every table and figure of the parts."""
    report = Page("The comparison study at toy size")
    report.text(
        "Rendered street scenes, a minute or less of training per model on CPUs: what the study does and draws, not "
        f"what the models can do. This call took {duration(seconds)}."
    )
    report.heading("Sizes")
    report.text("From configurations alone, 13 classes; multiply-adds at 512 x 512.")
    sizes = read_json(output / "params" / "params.json")
    columns = [
        "model_name",
        "total_params",
        "encoder_params",
        "head_params",
        "total_params_m",
        "macs_g",
        "macs_merged_g",
    ]
    report.table(sizes, columns)
    report.figure(output / "params" / "params.png", "Parameters and multiply-adds, encoder and head apart")
    report.heading("Architectures")
    found = read_json(output / "models" / "results.json")
    report.text(f"{VOID_LEFT_OUT}, here and below.")
    report.table(found["summary"])
    for name, caption in {
        "curves": CURVES,
        "tradeoffs": "mIoU against size and speed",
        "resolution": "mIoU, time, and time x memory against the size of the input",
        "paired": "Differences between models on the same images",
        "predictions_street_hazards": "The first validation images, predicted by each model",
    }.items():
        report.figure(output / "models" / f"{name}.png", caption)
    report.table(found["paired"])
    report.heading("Augmentation")
    ablated = read_json(output / "ablation" / "results.json")
    report.table(ablated["recipes"])
    report.figure(output / "ablation" / "ablation.png", "What each recipe changes against the first")
    report.figure(output / "ablation" / "curves.png", "Their curves")
    report.heading("Anomalies")
    report.text(
        f"Scores of {run} on test images with objects of no class. per_image: mean over images that hold both kinds; "
        "pooled: all pixels together; the two are not comparable. Best F1 and its threshold are those of an oracle."
    )
    report.table(_read_csv(output / "anomaly" / "metrics.csv"))
    points = output / "anomaly" / "operating_points.csv"
    if points.is_file():
        report.text("Thresholds that were fitted on other towns than they are judged on.")
        report.table(_read_csv(points))
    report.figure(output / "anomaly" / "curves.png", "All pixels together")
    for method in METHODS:
        for panel in sorted((output / "anomaly" / "panels" / method).glob("*.png"))[:1]:
            report.figure(panel, f"{method}: the brighter, the more anomalous")
    report.heading("Agreement with human ratings")
    report.text("Synthetic pairs and ratings: nobody was asked.")
    report.table(_read_csv(output / "agreement" / "correlation_results.csv"))
    report.text("Parameters against these maxima: r is Pearson's, rho Spearman's.")
    report.table(_read_csv(output / "agreement" / "correlation_vs_parameters.csv"))
    report.figure(output / "agreement" / "agreement.png", "Correlation of models' decisions with human ratings")
    report.figure(output / "agreement" / "correlation_vs_parameters.png", "The highest correlation against size")
    return report


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def _number(text: str) -> Any:
    if text == "":
        return None
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text
