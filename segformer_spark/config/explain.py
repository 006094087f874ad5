"""Validation errors of pydantic as messages for users: file and line, key, what is wrong, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from segformer_spark.config.fields import FIELDS, walk_fields

_KEY = "[key]"


def explain(error: ValidationError, model: type[BaseModel], sources: Mapping[str, str], source: str = "") -> str:
    """One line per problem.

    Args:
        model: what was validated; its fields are the known names.
        sources: {dotted key: where it stands}, such as "file.yaml:3".
        source: named where no key is.
    """
    known = [field.dotted for field in walk_fields(model)]
    return "\n".join(_explain(item, known, sources, source) for item in error.errors())


def first_problem(error: ValidationError) -> str:
    """The key and what is wrong with it, for files that no user writes."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def nearest_names(dotted: str, known: Iterable[str]) -> str:
    """A hint about a key that does not exist: the same name in another section first, then similar names beside it."""
    *section, leaf = dotted.split(".")
    names = list(known)
    elsewhere = _with_leaf(leaf, names)
    if elsewhere:
        return _did_you_mean(elsewhere)
    beside = {name.split(".")[len(section)] for name in names if name.split(".")[: len(section)] == section}
    near = difflib.get_close_matches(leaf, sorted(beside), n=2, cutoff=0.6)
    if near:
        return _did_you_mean(near)
    return f" Known here: {', '.join(sorted(beside))}." if beside else ""


def check_setting(dotted: str) -> str:
    """The name of a field of the configuration, as sweeps and studies set it.

    Raises:
        ValueError: there is no such field; similar ones are named.
    """
    if dotted in FIELDS:
        return dotted
    same = _with_leaf(dotted.split(".")[-1], FIELDS)
    near = same or difflib.get_close_matches(dotted, list(FIELDS), n=2, cutoff=0.6)
    raise ValueError(f"there is no such key of the configuration.{_did_you_mean(near)}")


def _with_leaf(leaf: str, known: Iterable[str]) -> list[str]:
    """The names that end in `leaf`, whatever their section."""
    return [name for name in known if name.split(".")[-1] == leaf]


def _did_you_mean(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(names)}?" if names else ""


def _explain(item: Any, known: list[str], sources: Mapping[str, str], source: str) -> str:
    parts = [str(part) for part in item["loc"] if part != _KEY]
    dotted = ".".join(parts)
    where = next(
        (sources[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in sources), source
    )
    prefix = f"{where}: {dotted}" if where and dotted else where or dotted or "configuration"
    if item["type"] == "extra_forbidden":
        return f"{prefix}: there is no such key.{nearest_names(dotted, known)}"
    if item["type"] == "missing":
        return f"{prefix}: this key is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(item["input"], dict | BaseModel) or _KEY in item["loc"] else f" (given: {item['input']!r})"
    return f"{prefix}: {message[0].lower()}{message[1:]}{given}"
