"""YAML with YAML 1.2 core-schema scalars, duplicate keys refused, and the line of every key.

PyYAML follows YAML 1.1: `6e-5` is a string, `no` a boolean, `12:30:00` the number 45000, and a key given
twice silently wins the second time (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from segformer_spark.errors import ConfigError


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - PyYAML's own class attribute


_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")

for _tag, _pattern in (("null", _NULL), ("bool", _BOOLEAN), ("int", _INTEGER), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern.pattern})$"), None)


def _construct_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """Return the value of `text` and the line (from 1) of every dotted key.

    Raises:
        ConfigError: not YAML, a duplicate key, or a key that is not a string; with `source` and the line.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, {}
        lines: dict[str, int] = {}
        _check_keys(root, "", source, lines)
        return loader.construct_document(root), lines
    except RecursionError as error:
        raise ConfigError(f"{source}: {_TOO_DEEP}") from error
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise ConfigError(f"{source}: a value is not what its tag says: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: this is not valid YAML: {problem}") from error
    finally:
        if loader is not None:
            loader.dispose()


def parse_scalar(text: str, source: str) -> Any:
    """The value of one override, as `--set a.b=text` or an environment variable give it."""
    value, _ = parse(text, source)
    return value


MAX_DEPTH, MAX_VALUES = 64, 100_000
"""Of one file, aliases written out: a few lines of aliases can stand for billions of values."""
_TOO_DEEP = f"values lie too deep in each other; the limit is {MAX_DEPTH} levels"


def _check_keys(node: yaml.Node, prefix: str, source: str, lines: dict[str, int], depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"{source}: {_TOO_DEEP}")
    if len(lines) > MAX_VALUES:
        raise ConfigError(
            f"{source}: these are too many values, aliases (*name) written out; the limit is {MAX_VALUES}"
        )
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            own = f"{prefix}.{position}"
            lines[own] = child.start_mark.line + 1
            _check_keys(child, own, source, lines, depth + 1)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{source}:{line}: the key {key_node.value!r} is not a name; quote it if it is one")
        key = key_node.value
        if key in seen:
            raise ConfigError(f"{source}:{line}: {key!r} is given twice, first on line {seen[key]}; keep one")
        seen[key] = line
        dotted = f"{prefix}.{key}" if prefix else key
        lines[dotted] = line
        _check_keys(value_node, dotted, source, lines, depth + 1)
