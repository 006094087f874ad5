"""What finished runs left behind -> one result each. Evaluates models that have not been evaluated yet."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.checkpoint.export import read_card
from segformer_spark.config.load import run_path
from segformer_spark.config.schema import Config
from segformer_spark.config.study import Study, StudyRun
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError
from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.files.json_file import read_json_object
from segformer_spark.models.size import ModelSize, size_of
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory, locate_model, model_name
from segformer_spark.run.listing import record_of
from segformer_spark.run.metrics_log import MetricsLog, Row
from segformer_spark.study.execute import PlannedRun


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        model, model_step: folder of the model that was evaluated, and its optimizer step.
        global_batch: images per optimizer step.
        training, validations: rows of metrics.jsonl.
        steps_per_epoch: optimizer steps.
        seconds_per_epoch: of each epoch; seconds: of all, without starts and evaluations.
        device: that it was trained on; num_devices of them.
        scores: {split: results.json}.
        per_image: {image: mean IoU over the classes that it or its prediction has} on the first split.
    """

    run: StudyRun
    config: Config
    model: Path
    model_step: int
    global_batch: int
    training: Sequence[Row]
    validations: Sequence[Row]
    steps_per_epoch: int
    seconds_per_epoch: Sequence[float]
    seconds: float
    device: str
    num_devices: int
    size: ModelSize
    scores: Mapping[str, Mapping[str, Any]]
    per_image: Mapping[str, float]

    @property
    def anomaly_metrics(self) -> Path:
        """Where `anomaly eval` leaves what it found of this run."""
        return RunDirectory(run_path(self.config)).anomaly / "test"

    @property
    def main_scores(self) -> Mapping[str, Any]:
        """Figures on the split that is compared."""
        return next(iter(self.scores.values()))

    @property
    def miou(self) -> float | None:
        value = self.main_scores["miou"]
        return None if value is None else float(value)

    @property
    def device_hours(self) -> float:
        """Hours times devices; on a CPU hours times processes."""
        return self.seconds * self.num_devices / 3600

    def miou_at_epoch(self, epoch: int) -> float | None:
        """mIoU of the validation at the end of an epoch; None without one."""
        rows = [row for row in self.validations if row["step"] == epoch * self.steps_per_epoch]
        return rows[-1].get("miou") if rows else None

    def epoch_of(self, step: int) -> float:
        """Passes over the training split at an optimizer step."""
        return step / self.steps_per_epoch

    @property
    def images_per_second(self) -> float | None:
        """Median over the log's intervals."""
        known = [row["images_per_s"] for row in self.training if row.get("images_per_s")]
        return statistics.median(known) if known else None

    @property
    def peak_memory_mb(self) -> float | None:
        """Highest of the log's intervals, in MiB: the allocator's peak on a GPU, the process's memory on a CPU."""
        known = [row["memory_gib"] for row in self.training if row.get("memory_gib")]
        return 1024 * max(known) if known else None


def collect(study: Study, planned: Sequence[PlannedRun], group: Group) -> list[RunResult]:
    """The results of all finished runs.

    Raises:
        UserError: no run is finished.
    """
    finished = [one for one in planned if one.is_finished]
    missing = [one.run.name for one in planned if one not in finished]
    if not finished:
        raise UserError(f"{study.path}: no run is finished yet; train them with `run`, or as an array of sweep jobs")
    if missing:
        logger.warning(
            "%d of %d runs are not finished and left out: %s", len(missing), len(planned), ", ".join(missing)
        )
    return [_result(study, one, group) for one in finished]


def _result(study: Study, one: PlannedRun, group: Group) -> RunResult:
    config, directory = one.resolved.config, one.directory
    model, _ = locate_model(directory.path)
    card = read_card(model)
    splits = study.splits or (config.data.val_split,)
    scores = {split: _evaluated(one, model, card.step, split, group) for split in splits}
    rows = MetricsLog(directory.metrics).rows()
    record = record_of(directory)
    epochs = record["seconds_per_epoch"]
    return RunResult(
        run=one.run,
        config=config,
        model=model,
        model_step=card.step,
        global_batch=int(record["runtime"]["global_batch"]),
        training=[row for row in rows if row["kind"] == "train"],
        validations=[row for row in rows if row["kind"] == "validation"],
        steps_per_epoch=int(record["runtime"]["steps_per_epoch"]),
        seconds_per_epoch=epochs,
        seconds=float(sum(epochs)),
        device=device_of(record),
        num_devices=int(record["runtime"]["world_size"]),
        size=size_of(config.model, len(card.class_names), config.data.input_size),
        scores=scores,
        per_image=_per_image(directory.evaluation / splits[0] / "per_image.csv"),
    )


def device_of(record: Mapping[str, Any]) -> str:
    """The GPU that a run was trained on, or its CPU, labelled as such."""
    first = record["hardware"][0]
    return str(first["gpu"]) if "gpu" in first else f"CPU: {first['cpu']}"


def _evaluated(one: PlannedRun, model: Path, step: int, split: str, group: Group) -> dict[str, Any]:
    """The metrics of the run's model on a split, from its evaluation folder if they are of this model."""
    folder = one.directory.evaluation / split
    if (folder / "results.json").is_file():
        results = read_json_object(folder / "results.json")
        record = results["record"]
        if record["card"]["step"] == step and model_name(Path(record["model"])) == model_name(model):
            return results
    logger.info("evaluating %s on %s", one.run.name, split)
    config = one.resolved.config
    batch = config.training.validation.batch_size or config.training.batch_size
    settings = InferenceSettings(batch_size=batch)
    options = EvaluateOptions(model=model, split=split, output=folder, num_worst=0, inference=settings)
    run_evaluation(one.resolved, options, group)
    return read_json_object(folder / "results.json")


def _per_image(path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    means = {}
    for row in rows:
        known = [float(value) for key, value in row.items() if key.startswith("iou_") and value]
        if known:
            means[row["image"]] = statistics.fmean(known)
    return means
