"""What the sections of the configuration share: the strict base class and how a field is declared."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def field(default: Any, description: str, *, env: str | None = None, resume_safe: bool = False, **limits: Any) -> Any:
    """A leaf: `env` names its environment variable, `resume_safe` says that it may change when a run is resumed."""
    extra: dict[str, Any] = {"resume_safe": resume_safe}
    if env:
        extra["env"] = env
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Strict base: unknown keys are errors, values are not coerced between kinds, sections do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
