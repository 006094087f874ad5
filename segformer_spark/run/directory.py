"""The run directory: the one artefact that joins training, evaluation and submission."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segformer_spark.config.load import ResolvedConfig
from segformer_spark.config.stored import load_stored_config
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.files.atomic import complete_folder, recover_folder, remove_leftovers, write_json, write_text
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.paths import real_path
from segformer_spark.run.console import logger

ENSEMBLE = "ensemble.json"
"""What an ensemble has in place of best/ and final/ (`evaluation.ensemble`)."""

_GUIDE = """This folder is one training run of segformer_spark.

config.yaml               the resolved configuration; `segformer-spark train --config config.yaml` repeats the run
training_params.yaml      configuration with the source of every value, command, hardware, versions, times; also .json
steps.bin                 loss and gradient norm of every step, exact; `segformer-spark replay` compares with it
metrics.jsonl             one line per log interval and validation; history.csv: one row per validation
curves.png, tensorboard/  the same as figures
log.txt                   what the job printed
checkpoints/step-*/       complete states for --resume
best/, final/             models with a card each (README.md); for `evaluate`, `predict`, `submit`, `export`
evaluation/, predictions/, submission/, export/   what these verbs wrote; report.html shows it
data_files.json           size, time and sha256 of the files that were trained and validated on
attempts/                 who wrote here and when: one job or process at a time
"""


@dataclass(frozen=True)
class RunDirectory:
    """Names of everything in a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def params_yaml(self) -> Path:
        return self.path / "training_params.yaml"

    @property
    def params_json(self) -> Path:
        return self.path / "training_params.json"

    @property
    def data_files(self) -> Path:
        return self.path / "data_files.json"

    @property
    def steps(self) -> Path:
        return self.path / "steps.bin"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def submission(self) -> Path:
        return self.path / "submission"

    @property
    def anomaly(self) -> Path:
        return self.path / "anomaly"

    @property
    def anomaly_statistics(self) -> Path:
        return self.anomaly / "statistics.json"

    @property
    def anomaly_features(self) -> Path:
        return self.anomaly / "features.safetensors"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    def is_run(self) -> bool:
        """Whether this folder was made by a training run."""
        return self.config.is_file()

    def create(self, resolved: ResolvedConfig) -> None:
        """Make the folder and write the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, dump_config(resolved))
        write_text(self.path / "README.txt", _GUIDE)

    def load_config(self) -> ResolvedConfig:
        """The configuration of the run.

        Raises:
            UserError: this is not a run directory.
        """
        if not self.is_run():
            raise UserError(f"{self.path}: this is not a run directory, it has no config.yaml")
        return load_stored_config(self.config)

    def write_record(self, record: dict[str, Any]) -> None:
        """Write training_params.yaml and .json: plain types only, so that yaml.safe_load reads them."""
        plain = json.loads(json.dumps(record))
        write_json(self.params_json, plain)
        write_text(self.params_yaml, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))


def dump_config(resolved: ResolvedConfig) -> str:
    """YAML that loads back to the same configuration."""
    plain = json.loads(resolved.config.model_dump_json())
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Floats with a dot or exponent that both YAML 1.1 and 1.2 read as a float."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa}.0e{exponent}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)


def open_for_training(path: Path, *, resume: bool, overwrite: bool) -> RunDirectory:
    """Decide whether a run may begin here.

    An existing run is refused without `resume` or `overwrite`; `overwrite` removes only what is a run directory. What a
    run that was killed before it had a configuration left behind is no obstacle.

    Raises:
        CheckpointError: the folder exists and was neither to be resumed nor to be overwritten.
    """
    run = RunDirectory(path)
    for folder in (run.best, run.final):
        recover_folder(folder)
    if not path.exists() or (run.is_run() and resume):
        return run
    if resume and any(run.checkpoints.glob("step-*")):
        # The start writes it anew, after the checkpoint's own configuration was compared with this one.
        logger.warning("%s is lost: it is written anew with the configuration of this start", run.config)
        return run
    if path.is_dir() and not run.is_run() and not _foreign(run):
        return run
    if run.is_run() and overwrite:
        for old in _contents(path):
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
        if not any(path.iterdir()):
            path.rmdir()
        return run
    if run.is_run():
        raise CheckpointError(
            f"{path}: this run exists already. Continue it with --resume auto, replace it with --overwrite, "
            "or choose another name: --set experiment.name=NAME"
        )
    raise CheckpointError(
        f"{path}: the folder is not empty and is not a run, it has no config.yaml; choose another output.save_path"
    )


def sweep_leftovers(run: RunDirectory) -> None:
    """Remove what kills left of files and folders that were being written; for who holds the run's lease."""
    remove_leftovers(run.path)


def _foreign(run: RunDirectory) -> list[Path]:
    """What lies in a folder without config.yaml beside what a run's start writes before that."""
    begun = {run.log, run.data_files} if any(run.attempts.glob("*.json")) else set()
    return [
        path
        for path in _contents(run.path)
        if path not in begun and not (path.name.startswith(".") and path.name.endswith(".tmp"))
    ]


def _contents(path: Path) -> list[Path]:
    """What a run consists of. Its attempts are counted on also when it is replaced: an old one may still live."""
    return [child for child in path.iterdir() if child != RunDirectory(path).attempts]


def locate_model(path: Path) -> tuple[Path, Path | None]:
    """The exported model that `path` means, and the run directory it belongs to (None when it is in none).

    For readers, beside whom the run may be training: nothing is renamed.

    Args:
        path: a run directory (its best/, else final/), an ensemble's folder or ensemble.json, an exported model
            folder, or an ONNX file; one that lies in a folder of a run belongs to that.

    Raises:
        CheckpointError: there is no model.
    """
    run = RunDirectory(path)
    if path.name == ENSEMBLE and path.is_file():
        return path, path.parent
    if path.suffix == ".onnx" and path.is_file():
        run = RunDirectory(real_path(path).parents[1])
        return path, path.parent.parent if run.is_run() else None
    if (path / ENSEMBLE).is_file():
        return path / ENSEMBLE, path
    if run.is_run():
        found = next((folder for folder in map(complete_folder, (run.best, run.final)) if folder is not None), None)
        if found is None:
            raise CheckpointError(f"{path}: the run has no best/ or final/ model yet")
        return found, path
    found = complete_folder(path)
    if found is None:
        raise CheckpointError(f"{path}: there is no such model or run directory")
    parent = RunDirectory(real_path(path).parent)
    return found, path.parent if parent.is_run() else None


def is_model(path: Path) -> bool:
    """Whether the path looks like a run, an ensemble, a model folder or an ONNX file; folders of images do not."""
    if path.is_file():
        return path.suffix == ".onnx"
    return RunDirectory(path).is_run() or (path / "config.json").is_file()


def model_name(folder: Path) -> str:
    """The name of an exported model's folder, also where a replacement set it aside."""
    return folder.name.removeprefix(".").removesuffix(".old") if folder.name.startswith(".") else folder.name


def training_record(model: Path) -> dict[str, Any] | None:
    """training_params of the run that a model lies in, without the long lists; None for a model elsewhere."""
    run = RunDirectory(real_path(model).parent)
    if not run.params_json.is_file():
        return None
    record = read_json_object(run.params_json)
    software = record.get("software", {})
    software.pop("packages", None)
    (software.get("git") or {}).pop("diff", None)
    return record
