"""`evaluate`: a model on a labelled split at native resolution -> counts, metrics, tables, figures, worst images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segformer_spark.config.load import ResolvedConfig
from segformer_spark.distributed.process_group import Group
from segformer_spark.distributed.result_lease import hold_results
from segformer_spark.errors import UserError
from segformer_spark.evaluation.collect import collect, forget
from segformer_spark.evaluation.drawn_images import draw_images
from segformer_spark.evaluation.record import session_record
from segformer_spark.evaluation.result_folder import describe_images, seal, write_results
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.evaluation.text_table import text_table
from segformer_spark.metrics.surface import Spacing
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
        others: further models, which are an ensemble with the first.
        group_by: what images are drawn together in a bootstrap, a rule of `data.grouping`; None as the data set is.
        spacing: height and width of a pixel, the unit of distances.
        shard: (i, n): only every n-th image from the i-th on; None for all.
    """

    model: Path
    split: str
    output: Path
    num_worst: int = 12
    num_examples: int = 0
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    others: tuple[Path, ...] = ()
    group_by: str | None = None
    spacing: Spacing = (1.0, 1.0)
    shard: tuple[int, int] | None = None


def run_evaluation(resolved: ResolvedConfig, options: EvaluateOptions, group: Group) -> dict[str, Any]:
    """Evaluate and write the results; returns the figures. Collective. Continues what was cut off.

    Raises:
        UserError: model, data set and configuration do not go together.
    """
    with hold_results(options.output, group):
        return _evaluate(resolved, options, group)


def _evaluate(resolved: ResolvedConfig, options: EvaluateOptions, group: Group) -> dict[str, Any]:
    config = resolved.config
    settings = replace(options.inference, view=resolved.overridden("inference"), num_workers=config.data.num_workers)
    models = [options.model, *options.others]
    session = Session.open(models, settings, group, config.data, options.split)
    dataset = session.labelled()
    description = group.on_main(lambda: describe_images(dataset, session.card.class_names, options.group_by))
    indices = _shard(len(dataset), options.shard)
    description = description.take(indices)
    asked = {
        "dataset": config.data.dataset,
        "split": options.split,
        "split_is": config.data.describe_split(options.split),
        "tta": session.tta,
        "decision": session.decision_record(),
        "precision": settings.precision,
        "resolution": "native",
        "inference": session.view.config.model_dump(),
        "spacing": list(options.spacing),
        "shard": None if options.shard is None else list(options.shard),
    }
    identity = {**asked, "model_sha256": group.on_main(session.weights_digest), "images": asdict(description)}
    started = now()
    label = f"evaluating {asked['split_is']}"
    counts, seconds = collect(session, indices, options.output, identity, label, options.spacing)
    hosts = group.gather(host_record(group.device))

    def write() -> dict[str, Any]:
        record = {**asked, "seconds_per_image": seconds, **session_record(session, hosts, started)}
        metrics = write_results(options.output, counts, description, record)
        draw_images(
            *(session, indices, counts, description, metrics, options.output),
            num_worst=options.num_worst,
            num_examples=options.num_examples,
        )
        forget(options.output)
        digest = seal(options.output)
        for line in text_table(metrics):
            logger.info("%s", line)
        logger.info("results: %s, sha256 of its SHA256SUMS: %s", options.output, digest)
        return metrics

    found: dict[str, Any] = group.on_main(write)
    return found


def _shard(number: int, shard: tuple[int, int] | None) -> list[int]:
    if shard is None:
        return list(range(number))
    first, step = shard
    if first >= number:
        raise UserError(f"--shard {first}/{step}: the split has {number} images, none is left for this shard")
    return list(range(first, number, step))
