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
    def takes_text(self) -> bool:
        """Whether the field is free text, so that an override is not parsed as YAML."""
        return self.info.annotation is str or self._alternatives == (str, type(None))

    @property
    def type_name(self) -> str:
        annotation = self.info.annotation
        if typing.get_origin(annotation) is typing.Literal:
            return " / ".join(str(value) for value in typing.get_args(annotation))
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        return text.replace("typing.", "").replace("NoneType", "null").replace("None", "null")

    @property
    def _alternatives(self) -> tuple[Any, ...]:
        is_union = isinstance(self.info.annotation, types.UnionType)
        return typing.get_args(self.info.annotation) if is_union else ()

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}


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
