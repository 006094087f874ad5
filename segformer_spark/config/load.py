"""YAML file(s) + environment + `--set` -> one validated Config, with the source of every value.

Precedence: defaults < base file < file < environment < `--set`.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segformer_spark.config.environment import Override, parse_override, read_environment
from segformer_spark.config.explain import explain
from segformer_spark.config.fields import FIELDS, flatten
from segformer_spark.config.file_kind import CONFIGURATION, refuse_other_kind
from segformer_spark.config.image_size import size_text
from segformer_spark.config.schema import RUN_NAME_PATTERN, Config
from segformer_spark.config.typed_file import read_text
from segformer_spark.config.yaml12 import parse
from segformer_spark.errors import ConfigError
from segformer_spark.files.paths import real_path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""The clone that this package runs from; the folder of all packages where it was installed."""

BUNDLED = Path(__file__).resolve().parents[1] / "project"
"""configs/, ds_configs/ and slurm/ as a wheel carries them; absent in a clone."""

_RENAMED_FILES = {f"spark_seed_{name}.yaml": f"spark_original_{name}.yaml" for name in ("b2_512", "b3_512", "b5_512")}
"""Configurations under configs/ by their names until 0.1."""


@dataclass(frozen=True)
class ResolvedConfig:
    """A validated configuration and, per dotted field, where its value came from."""

    config: Config
    provenance: dict[str, str]

    @property
    def overrides(self) -> dict[str, str]:
        """Fields that the environment or the command line set."""
        return {k: v for k, v in self.provenance.items() if v.startswith(("environment", "--set"))}

    def overridden(self, section: str) -> dict[str, Any]:
        """{name: value} of a section's fields that the environment or the command line set."""
        values, prefix = flatten(self.config.model_dump()), f"{section}."
        return {dotted.removeprefix(prefix): values[dotted] for dotted in self.overrides if dotted.startswith(prefix)}


def load_config(
    path: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> ResolvedConfig:
    """Load a configuration.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: `a.b=value` items of the command line.
        environment: variables to read overrides from; None reads none.
        complete: fills the file's tree, before overrides (config/stored.py).

    Raises:
        ConfigError: with file, line and key of what is wrong.
    """
    tree, sources = read_file(Path(path)) if path is not None else ({}, {})
    tree = complete(tree)
    extra = list(read_environment(environment)) if environment is not None else []
    extra += [_parse_set(item) for item in overrides]
    for override in extra:
        assign(tree, override.dotted, override.value)
        sources = {k: v for k, v in sources.items() if not k.startswith(f"{override.dotted}.")}
        sources[override.dotted] = override.source
    return validate(tree, sources)


def read_file(path: Path, _trail: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the merged tree of `path` and its `base:` files, and {dotted key: 'file:line'}."""
    resolved = real_path(path)
    if resolved in _trail:
        raise ConfigError(
            f"{path}: 'base:' leads back to this file: {' -> '.join(p.name for p in (*_trail, resolved))}"
        )
    renamed = path.with_name(_RENAMED_FILES.get(path.name, path.name))
    if not path.is_file() and renamed.is_file():
        logging.getLogger("segformer_spark").warning("%s is now %s; the former name is read until 0.3", path, renamed)
        tree, sources = read_file(renamed, _trail)
        # Its runs keep the name that they have on disk.
        return _merge(tree, {"experiment": {"name": path.stem}}), sources
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"{path}: there is no such configuration file.{hint}")
    value, lines = parse(read_text(path, CONFIGURATION), str(path))
    refuse_other_kind(value, CONFIGURATION, path)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: a configuration is sections of 'key: value', this file holds a {type(value).__name__}"
        )
    sources = {dotted: f"{_display(path)}:{line}" for dotted, line in lines.items()}
    base = value.pop("base", None)
    if base is None:
        return value, sources
    if not isinstance(base, str):
        raise ConfigError(f"{sources['base']}: 'base' must be the path of one YAML file, relative to this one")
    base_tree, base_sources = read_file(path.parent / base, (*_trail, resolved))
    return _merge(base_tree, value), {**base_sources, **sources}


def validate(tree: dict[str, Any], sources: Mapping[str, str]) -> ResolvedConfig:
    """Turn a plain tree into a Config; `sources` name the origin of its keys in error messages."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, Config, sources)) from error
    provenance = {dotted: sources.get(dotted, "default") for dotted in FIELDS}
    resolved = ResolvedConfig(config, provenance)
    run_name(config)
    return resolved


def run_name(config: Config) -> str:
    """The run's name with its placeholders filled in, and its fold at the end.

    Raises:
        ConfigError: a name that is unsafe in paths and batch scripts.
    """
    template = config.experiment.name
    try:
        name = template.format(
            dataset=config.data.dataset, variant=config.model.label, image_size=size_text(config.data.image_size)
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"experiment.name: {template!r} may use {{dataset}}, {{variant}} and {{image_size}} only"
        ) from error
    fold = config.data.cross_validation.fold
    name = name if fold is None else f"{name}-fold{fold}"
    if not re.fullmatch(RUN_NAME_PATTERN, name) or set(name) == {"."} or name.startswith("-"):
        raise ConfigError(
            f"experiment.name: {name!r} must be 1 to 64 letters, digits, '.', '_' or '-', the first no '-': it names a "
            "folder and a job"
        )
    return name


def run_path(config: Config) -> Path:
    """The run directory of this configuration."""
    return Path(config.output.save_path.replace("{name}", run_name(config)))


def project_folder(name: str) -> Path:
    """configs/, ds_configs/ or slurm/: of the clone; else of the working folder, where `init` has laid them; else those
    that the package carries."""
    places = (PROJECT_ROOT / name, Path(name), BUNDLED / name)
    if not BUNDLED.is_dir():
        return places[0]
    return next((place for place in places[1:] if place.is_dir()), places[2])


def _display(path: Path) -> str:
    """Path relative to the project where it lies inside, so that records carry no machine paths."""
    resolved = real_path(path)
    return str(resolved.relative_to(PROJECT_ROOT)) if resolved.is_relative_to(PROJECT_ROOT) else path.name


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _parse_set(item: str) -> Override:
    dotted, separator, text = item.partition("=")
    if not separator:
        raise ConfigError(f"--set {item}: write it as section.key=value, for example --set training.epochs=20")
    return Override(dotted.strip(), parse_override(dotted.strip(), text, f"--set {dotted}"), f"--set {dotted.strip()}")


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value of a dotted key; sections on the way are copied, or made."""
    *sections, leaf = dotted.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        node[section] = dict(child) if isinstance(child, dict) else {}
        node = node[section]
    node[leaf] = value
