"""A run: its checkpoints, models, evaluations and submission, and that its records can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segformer_spark.checkpoint.names import checkpoint_folders
from segformer_spark.checkpoint.store import lost_newest
from segformer_spark.config.fields import flatten
from segformer_spark.config.stored import stored_fields
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.evaluation.comparison_folder import COMPARISON, verify_comparison
from segformer_spark.evaluation.result_folder import COUNTS, RESULTS
from segformer_spark.evaluation.saved_decision import DECISION_FILE, read_decision
from segformer_spark.evaluation.verify import check_report, verify_evaluation
from segformer_spark.files.checksums import CHECKSUMS
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.record import scrub
from segformer_spark.run.verification import Verification
from segformer_spark.submission.verify import verify_submission
from segformer_spark.verification.models import verify_checkpoint, verify_model
from segformer_spark.verification.steps import step_faults


def verify_run(path: Path) -> Verification:
    """Everything in a run directory that has a digest, one part after another; parts are named in what is found."""
    run, found = RunDirectory(path), check_report(path)
    for name, read in _records(run).items():
        try:
            read()
            found.unchecked.append(name)
        except UserError as error:
            found.faults.append(error.problem)
    found.faults += [*_differences(run), *step_faults(run)] if not found.faults else []
    present = checkpoint_folders(run.checkpoints)
    lost = lost_newest(run.checkpoints)
    if lost is not None and not present:
        found.faults.append(f"checkpoints: all are gone; the newest was of step {lost}")
    parts: list[tuple[Path, Callable[[Path], Verification]]] = [(folder, verify_checkpoint) for folder in present]
    parts += [(folder, verify_model) for folder in (run.best, run.final, *path.glob("average-*")) if folder.is_dir()]
    for folder in sorted(run.evaluation.glob("*")):
        if (folder / COMPARISON).is_file():
            parts.append((folder, verify_comparison))
        elif (folder / RESULTS).is_file() or (folder / COUNTS).is_file():
            parts.append((folder, verify_evaluation))
    if any((run.submission / name).is_file() for name in ("manifest.json", CHECKSUMS)):
        parts.append((run.submission, verify_submission))
    for folder, verify in parts:
        name = folder.relative_to(path).as_posix()
        own = verify(folder)
        found.faults += [f"{name}: {fault}" for fault in own.faults]
        for listed, kept in ((own.recomputed, found.recomputed), (own.hashed, found.hashed)):
            kept.extend([f"{name}/ ({len(listed)} files or figures)"] if listed else [])
        found.unchecked += [f"{name}/{one}" for one in own.unchecked]
    return found


def _differences(run: RunDirectory) -> list[str]:
    """Settings of config.yaml that training_params.json has otherwise."""
    if not run.params_json.is_file():
        return []
    recorded = read_json_object(run.params_json).get("config")
    if not isinstance(recorded, dict):
        return [f"{run.params_json.name}: has no configuration"]
    try:
        other = stored_fields(recorded)
    except ConfigError as error:
        return [f"{run.params_json.name}: {error}"]
    own = flatten(scrub(run.load_config().config.model_dump(mode="json")))  # as the record, without machine paths
    return [
        f"{run.config.name}: {name} is {value!r}, {run.params_json.name} has {other[name]!r}"
        for name, value in own.items()
        if other[name] != value
    ]


def _records(run: RunDirectory) -> dict[str, Callable[[], object]]:
    """{file: how it is read}, of those that are there."""
    decision = run.path / DECISION_FILE
    files: dict[Path, Callable[[], object]] = {
        run.config: run.load_config,
        run.params_json: lambda: read_json_object(run.params_json),
        run.data_files: lambda: read_json_object(run.data_files),
        decision: lambda: read_decision(decision),
    }
    return {path.name: read for path, read in files.items() if path.exists()}
