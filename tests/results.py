"""What is made of a trained run."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.config.stored import load_stored_config
from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
from segformer_spark.report.render import write_report
from segformer_spark.submission.submit import SubmitOptions, run_submission
from tests.sessions import group_of_one


def add_results(run: Path, root: Path) -> None:
    """Give a run an evaluation, a submission and a report, in their usual places."""
    with group_of_one() as group:
        options = EvaluateOptions(run, "val", run / "evaluation" / "val", num_worst=1)
        run_evaluation(load_stored_config(run / "config.yaml"), options, group)
        run_submission(SubmitOptions(run, root / "stream-1-test", run / "submission"), group)
    write_report(run)
