"""The strict reader of files that users write: the text of every YAML file, and sweeps and studies with their types."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from segformer_spark.config.explain import explain
from segformer_spark.config.file_kind import refuse_other_kind
from segformer_spark.config.section import Section
from segformer_spark.config.yaml12 import parse
from segformer_spark.errors import ConfigError
from segformer_spark.files.regular_file import read_regular

MAX_BYTES = 2**20
"""No file written by hand is larger."""

T = TypeVar("T", bound=Section)


def read_text(path: Path, kind: str) -> str:
    """The content of a regular file of at most MAX_BYTES in UTF-8.

    Args:
        kind: what the file is, for messages.

    Raises:
        ConfigError: there is no such file, or it is something else.
    """
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such {kind}") from error
    except OSError as error:
        raise ConfigError(f"{path}: the {kind} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the {kind} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def read_typed(path: Path, kind: str, model: type[T]) -> T:
    """A YAML file with exactly the keys and types of `model`.

    Raises:
        ConfigError: no such file, not YAML, or a key that is unknown, missing or of another type; with file and line.
    """
    tree, lines = parse(read_text(path, kind), str(path))
    refuse_other_kind(tree, kind, path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a {kind} is a mapping with the keys {', '.join(model.model_fields)}")
    sources = {dotted: f"{path}:{line}" for dotted, line in lines.items()}
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, model, sources, str(path))) from error
