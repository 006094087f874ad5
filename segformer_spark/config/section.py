"""What the sections of the configuration share: the strict base class and how a field is declared."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_DEFAULT: Any = object()


def field(
    default: Any,
    description: str,
    *,
    env: str | None = None,
    resume_safe: bool = False,
    absent: Any = _DEFAULT,
    **limits: Any,
) -> Any:
    """A leaf of the configuration.

    Args:
        env: its environment variable.
        resume_safe: it may change when a run is resumed.
        absent: value for runs of versions that had no such setting, where the default would change their behaviour.
    """
    extra: dict[str, Any] = {"resume_safe": resume_safe}
    if env:
        extra["env"] = env
    if absent is not _DEFAULT:
        extra["absent"] = absent
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Strict base: unknown keys are errors, values are not coerced between kinds, sections do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
