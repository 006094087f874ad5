"""Settings that a verb does not use: of `--set` they are refused, of the environment they are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segformer_spark.errors import ConfigError


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


def is_used(dotted: str, used: Sequence[str], not_used: Sequence[str] = ()) -> bool:
    """Whether a field, or the section that it is in, is among those used."""

    def within(names: Sequence[str]) -> bool:
        return any(dotted == name or dotted.startswith(f"{name}.") for name in names)

    return within(used) and not within(not_used)
