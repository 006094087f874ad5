"""Settings that change nothing: of `--set` they are refused, of files and the environment they are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from segformer_spark.errors import ConfigError

if TYPE_CHECKING:
    from segformer_spark.config.schema import Config


READING = ("data.exif_orientation", "data.max_pixels", "data.nearest_color", "data.palette_masks")
"""How the files of a data set are read, for every verb that reads one."""


def refuse_unused(
    verb: str,
    overrides: Sequence[str],
    used: Sequence[str],
    not_used: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> None:
    """Check the items of `--set`.

    Args:
        used: fields, or sections, that the verb reads; `not_used` are exceptions from them.
        options: {field: the verb's option that is meant}.

    Raises:
        ConfigError: an item would have no effect; each is named.
    """
    unused = [item.partition("=")[0].strip() for item in overrides]
    unused = [dotted for dotted in unused if not is_used(dotted, used, not_used)]
    if unused:
        hints = [f"{options[dotted]} in place of {dotted}" for dotted in unused if options and dotted in options]
        raise ConfigError(
            f"--set {', '.join(unused)}: {verb} does not use {'it' if len(unused) == 1 else 'them'}",
            f"Give {', '.join(hints)}" if hints else "Leave it out",
        )


def refuse_without_effect(overrides: Sequence[str], config: Config) -> None:
    """Check the items of `--set`, which are part of `config`.

    Raises:
        ConfigError: another setting takes its effect away; what it needs is named.
    """
    from segformer_spark.config.effect import without_effect

    useless = without_effect(config)
    for dotted in (item.partition("=")[0].strip() for item in overrides):
        if dotted in useless:
            raise ConfigError(f"--set {dotted}: it has no effect here", f"It needs {useless[dotted]}.")


def is_used(dotted: str, used: Sequence[str], not_used: Sequence[str] = ()) -> bool:
    """Whether a field, or the section that it is in, is among those used."""

    def within(names: Sequence[str]) -> bool:
        return any(dotted == name or dotted.startswith(f"{name}.") for name in names)

    return within(used) and not within(not_used)
