"""What the sections of the configuration share: the strict base class and how a field is declared."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_DEFAULT: Any = object()


def field(
    default: Any,
    description: str,
    *,
    env: str | None = None,
    resume_safe: bool = False,
    absent: Any = _DEFAULT,
    path: bool = False,
    **limits: Any,
) -> Any:
    """A leaf of the configuration.

    Args:
        env: its environment variable.
        resume_safe: it may change when a run is resumed.
        path: it is a path, or the name of something: `~` and environment variables are expanded.
        absent: value for runs of versions that had no such setting, where the default would change their behaviour.
    """
    extra: dict[str, Any] = {"resume_safe": resume_safe, "path": path}
    if env:
        extra["env"] = env
    if absent is not _DEFAULT:
        extra["absent"] = absent
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Strict base: unknown keys are errors, values are not coerced between kinds, sections do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _expand_paths(cls, value: Any, info: ValidationInfo) -> Any:
        extra = cls.model_fields[str(info.field_name)].json_schema_extra
        is_path = isinstance(extra, dict) and bool(extra.get("path"))
        return expand_path(value) if is_path and isinstance(value, str) else value


def expand_path(text: str) -> str:
    """`~/x`, `$SCRATCH/x` and `${SCRATCH}/x` as a shell would read them.

    Raises:
        ValueError: a variable that is not set, or a user that does not exist.
    """
    for name in re.findall(r"\$(?:\{([^}]*)\}|(\w+))", text):
        variable = name[0] or name[1]
        if variable not in os.environ:
            raise ValueError(f"{text!r} names the environment variable {variable}, which is not set")
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith("~"):
        raise ValueError(f"{text!r}: there is no such home folder")
    return expanded
