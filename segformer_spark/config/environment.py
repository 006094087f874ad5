"""Overrides from environment variables, read only when the caller asks (`--from-env`).

The names stand on the schema's fields. The batch scripts use a few more for the command itself
(`LAUNCH_VARIABLES`). A near miss of a known name is an error: IMAGE_SZIE must not be ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from segformer_spark.config.fields import FIELDS
from segformer_spark.config.yaml12 import parse_scalar
from segformer_spark.errors import ConfigError

LAUNCH_VARIABLES: dict[str, str] = {
    "CONFIG": "Configuration file of the training job; default configs/spark_<variant>.yaml.",
    "RESUME": "auto, or a checkpoint folder: continue the run instead of starting it.",
    "ACCEPT_CHANGES": "1 resumes a run although images or masks are others than before.",
    "MODEL_PATH": "Run directory or exported model that evaluation, prediction and inference use.",
    "TEST_IMAGES": "Folder of test images for inference.",
    "PREDICT_IMAGES": "Images of segformer_predict.sh: files, folders, patterns, separated by colons.",
    "OUTPUT": "Folder for the results of evaluation, prediction or inference; the CSV of benchmark_scaling.sh.",
    "SPLIT": "Split that evaluation uses.",
    "TTA": "Test-time augmentation of evaluation and inference: none, hflip, flips, turns, scales, or several with +.",
    "CROPS": "What the model is shown in evaluation and inference: none, box or two_pass.",
    "DECISION": "How evaluation and inference decide: saved, as evaluate --save-decision left it, or argmax.",
    "BOXES": "CSV with the boxes of the test images, for CROPS=box.",
    "VENV": "Python environment of the job; default .venv in the project.",
    "SCRATCH_DIR": "Folder for caches; default $SCRATCH, else the project.",
    "SITE": "Site file in slurm/sites: generic, meluxina or iris; default generic.",
    "STAGE_DATA": "1 copies the cache (DATA_CACHE) to each node's own disk before training.",
    "STAGE_ENV": "1 unpacks the environment (VENV.tar, from make env-archive) to each node's own disk at the start.",
    "LOCAL_SCRATCH": "The node's own disk, for STAGE_DATA and STAGE_ENV; default $SLURM_TMPDIR, $TMPDIR, /tmp.",
    "MASTER_ADDR": "Name or address of the first node, where the names of nodes do not resolve.",
    "MASTER_PORT": "Port at which the ranks meet; default the first free one of eight that follow from the job.",
    "RESTART_IN_PLACE": "0 requeues a training job after every fault; by default its ranks first start again in it.",
    "SPARE_NODES": "Nodes of the training job that wait to take the place of a lost one; default 0 (docs/slurm.md).",
    "REQUEUE_ON_CANCEL": "1 requeues a training job also when scancel ended it; by default scancel is final.",
    "SEGFORMER_KERNELS": "Arithmetic before hardware.kernels: auto, cpu, plain or gpu; read by every verb, always.",
    "ABLATION": "1 makes segformer_study.sh write the report of an ablation.",
    "TRAIN_OPTIONS": "Options of sbatch for the training job alone, in pipeline.sh.",
    "CACHE_DIR": "Folder in which prepare_data.sh builds the cache; default cache/ in the data set's folder.",
    "CACHE_SIZE": "Side in pixels of the cache of prepare_data.sh; default native size.",
}


@dataclass(frozen=True)
class Override:
    """One value that replaces the file's, and where it came from."""

    dotted: str
    value: Any
    source: str


def config_variables() -> dict[str, str]:
    """{environment variable: dotted field}, from the schema."""
    return {field.env: dotted for dotted, field in FIELDS.items() if field.env}


def read_environment(environment: Mapping[str, str]) -> list[Override]:
    """Overrides found in `environment`.

    Raises:
        ConfigError: a variable that begins with SEGFORMER_ or nearly equals a known name, but is not one.
    """
    known = config_variables()
    names = [*known, *LAUNCH_VARIABLES]
    for variable in environment:
        if variable in names:
            continue
        # One letter off counts for fields only: sites have a CACHEDIR or LOCALSCRATCH of their own.
        meant = _transposed(variable, names) or _one_off(variable, known)
        if meant or variable.startswith("SEGFORMER_"):
            hint = f"did you mean {meant}?" if meant else f"known names: {', '.join(sorted(names))}"
            raise ConfigError(f"environment variable {variable} is not known: {hint} Correct or unset it.")
    return [
        Override(
            dotted, parse_override(dotted, environment[variable], f"environment {variable}"), f"environment {variable}"
        )
        for variable, dotted in known.items()
        if environment.get(variable, "") != ""
    ]


def flag(environment: Mapping[str, str], name: str) -> bool:
    """Whether a launch variable is 1.

    Raises:
        ConfigError: another value than 0 or 1.
    """
    value = environment.get(name) or "0"
    if value not in ("0", "1"):
        raise ConfigError(f"environment variable {name}={value}: 0 or 1 is expected")
    return value == "1"


def parse_override(dotted: str, text: str, source: str) -> Any:
    """Text fields take `text` as it is, all others as a YAML scalar or flow value."""
    if dotted in FIELDS and FIELDS[dotted].takes_text and text not in ("null", "~"):
        return text
    return parse_scalar(text, source)


def _transposed(variable: str, names: Iterable[str]) -> str | None:
    return next((name for name in names if len(name) >= 5 and sorted(variable) == sorted(name)), None)


def _one_off(variable: str, names: Iterable[str]) -> str | None:
    for name in names:
        if len(name) >= 8 and abs(len(name) - len(variable)) <= 1 and _edits(variable, name) <= 1:
            return name
    return None


def _edits(left: str, right: str) -> int:
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal")
