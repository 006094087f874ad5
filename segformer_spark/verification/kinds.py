"""What lies at a path, and how it is verified. Nothing is changed, and no model or GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.checkpoint.names import is_checkpoint_name
from segformer_spark.errors import UserError
from segformer_spark.evaluation.comparison_folder import COMPARISON, verify_comparison
from segformer_spark.evaluation.result_folder import COUNTS, REPORT_DIGEST, RESULTS
from segformer_spark.evaluation.verify import check_report, verify_evaluation
from segformer_spark.files.json_file import read_json_object
from segformer_spark.models.weights import CARD
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.verification import Verification
from segformer_spark.submission.verify import verify_submission
from segformer_spark.verification.data import verify_data
from segformer_spark.verification.models import verify_checkpoint, verify_model
from segformer_spark.verification.run import verify_run


@dataclass(frozen=True)
class Kind:
    """What a folder can be.

    Attributes:
        name: for people.
        matches: whether a folder is one.
        verify: what is wrong with it.
    """

    name: str
    matches: Callable[[Path], bool]
    verify: Callable[[Path], Verification]


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda folder: any((folder / name).is_file() for name in names)


def _manifest_with(key: str) -> Callable[[Path], bool]:
    def matches(folder: Path) -> bool:
        try:
            return key in read_json_object(folder / "manifest.json")
        except UserError:
            return False

    return matches


KINDS = (
    Kind("comparison", _has(COMPARISON), verify_comparison),
    Kind("evaluation", _has(COUNTS, RESULTS), verify_evaluation),
    Kind("run", lambda folder: RunDirectory(folder).is_run(), verify_run),
    Kind("submission", _manifest_with("zip_sha256"), verify_submission),
    Kind("data set", _manifest_with("splits"), verify_data),
    Kind(
        "checkpoint",
        lambda folder: is_checkpoint_name(folder) or _has("state.json")(folder),
        verify_checkpoint,
    ),
    Kind("model", _has("config.json", CARD, "model.safetensors"), verify_model),
    Kind("report", _has(REPORT_DIGEST), check_report),
)
"""In this order: the first that matches."""


def verify_path(path: Path) -> tuple[str, Verification]:
    """What the folder is, and what was found.

    Raises:
        UserError: it is nothing that can be verified.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder")
    kind = next((kind for kind in KINDS if kind.matches(path)), None)
    if kind is None:
        raise UserError(f"{path}: this is none of {', '.join(kind.name for kind in KINDS)}")
    return kind.name, kind.verify(path)
