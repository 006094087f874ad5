"""The templates of reports, and how they write numbers."""

from __future__ import annotations

from typing import Any

import jinja2

from segformer_spark import __version__
from segformer_spark.run.record import command_record, scrub
from segformer_spark.run.system import now


def rendered(template: str, **values: Any) -> str:
    """A template of templates/, which also knows `version`, `written` and `command`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segformer_spark.report"),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": score, "number": number, "seconds": seconds}
    known = {"version": __version__, "written": now(), "command": scrub(command_record())}
    return environment.get_template(template).render(**known, **values)


def score(value: float | None, digits: int = 4) -> str:
    """A metric from 0 to 1."""
    return "-" if value is None else f"{value:.{digits}f}"


def number(value: float | None) -> str:
    """A count in short: 1,234 or 12.3 million."""
    if value is None:
        return "-"
    for limit, word in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= limit:
            return f"{value / limit:,.1f} {word}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def seconds(value: Any) -> str:
    """A time in words of its size."""
    if not isinstance(value, int | float):
        return "-"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
