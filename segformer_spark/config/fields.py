"""Walks the schema: dotted field names, their environment variables, their description."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segformer_spark.config.schema import Config


@dataclass(frozen=True)
class ConfigField:
    """One leaf of the configuration."""

    dotted: str
    info: FieldInfo

    @property
    def env(self) -> str | None:
        return self._extra.get("env")

    @property
    def resume_safe(self) -> bool:
        return bool(self._extra.get("resume_safe", False))

    @property
    def absent(self) -> Any:
        """The value for stored configurations that lack the field."""
        return self._extra.get("absent", self.default)

    @property
    def default(self) -> Any:
        return self.info.get_default(call_default_factory=True)

    @property
    def takes_text(self) -> bool:
        """Whether the field is free text, so that an override is not parsed as YAML."""
        return self.info.annotation is str or self._alternatives == (str, type(None))

    @property
    def type_name(self) -> str:
        return _type_name(self.info.annotation)

    @property
    def _alternatives(self) -> tuple[Any, ...]:
        is_union = isinstance(self.info.annotation, types.UnionType)
        return typing.get_args(self.info.annotation) if is_union else ()

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return " / ".join(str(value) for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(argument) for argument in arguments)
    if arguments:
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return str(annotation.__name__)


def walk_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[ConfigField]:
    """Yield every leaf field of `model`, depth first, in the order of the schema."""
    for name, info in model.model_fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from walk_fields(info.annotation, dotted)
        else:
            yield ConfigField(dotted, info)


FIELDS: dict[str, ConfigField] = {field.dotted: field for field in walk_fields()}


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested sections as {dotted field: value}, for the fields of the schema."""
    flat = {}
    for dotted in FIELDS:
        node: Any = tree
        for part in dotted.split("."):
            node = node[part]
        flat[dotted] = node
    return flat
