"""`evaluate --compare-inference`: the comparison's table, and the winner as the run's decision.json."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from segformer_spark.config.load import ResolvedConfig
from segformer_spark.distributed.process_group import Group
from segformer_spark.distributed.result_lease import hold_results
from segformer_spark.errors import UserError
from segformer_spark.evaluation.compare_inference import CompareOptions, compare_inference
from segformer_spark.evaluation.comparison_folder import write_comparison
from segformer_spark.evaluation.judged_rows import Comparison, row_record, table
from segformer_spark.evaluation.record import session_record
from segformer_spark.evaluation.saved_decision import DECISION_FILE, decision_record, write_decision
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.run.console import logger
from segformer_spark.run.lease import Owner, refuse_if_leased
from segformer_spark.run.record import host_record
from segformer_spark.run.system import now


def choose_decision(
    resolved: ResolvedConfig,
    model: Path,
    split: str,
    output: Path,
    inference: InferenceSettings,
    options: CompareOptions,
    group: Group,
    *,
    save: bool,
) -> Comparison:
    """Compare ways of asking a model, write inference.json, .csv and .txt into `output`, and save the winner.

    Raises:
        UserError: the model lies in no run directory and is to be saved, or its run is being trained.
    """
    with hold_results(output, group):
        config = resolved.config
        settings = replace(inference, view=resolved.overridden("inference"), num_workers=config.data.num_workers)
        session = Session.open(model, settings, group, config.data, split)
        run = session.run
        if save:
            if run is None:
                raise UserError(f"{model} does not lie in a run directory: there is no place for {DECISION_FILE}")
            group.on_main(lambda: refuse_if_leased(run, Owner.here(os.environ)))
        started = now()
        comparison = compare_inference(session, options)
        hosts = group.gather(host_record(group.device))

        def write() -> None:
            halves = comparison.halves
            facts: dict[str, Any] = {
                "dataset": config.data.dataset,
                "split": split,
                "split_is": config.data.describe_split(split),
                "num_images": [len(halves.chosen_on), len(halves.judged_on)],
                "time_limit": options.time_limit,
                "seed": options.seed,
            }
            record = session_record(session, hosts, started)
            digest = write_comparison(output, comparison, session.card.class_names, facts, record)
            for line in table(comparison):
                logger.info("%s", line)
            chosen = {**facts, "halves": halves.rule, "metric": comparison.metric}
            if save and run is not None:
                _save(session, comparison, run / DECISION_FILE, chosen)
            logger.info("comparison: %s, sha256 of its SHA256SUMS: %s", output, digest)

        group.on_main(write)
        return comparison


def _crops(session: Session) -> dict[str, Any]:
    """The crops that were asked for; the rows are those of this view."""
    crops = session.settings.crops
    return {} if crops is None else {"crops": crops}


def _save(session: Session, comparison: Comparison, path: Path, chosen: dict[str, Any]) -> None:
    winner = comparison.winner
    record = decision_record(
        winner.decision,
        session.card.class_names,
        model_sha256=session.weights_digest(),
        tta=winner.tta,
        inference={**session.settings.view, **_crops(session), **winner.view},
        chosen={**chosen, "row": row_record(winner), "written": now()},
    )
    write_decision(path, record)
    logger.info("decision: %s (%s); submit and predict use it", winner.name, path)
