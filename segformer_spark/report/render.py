"""report.html, which a browser opens from disk without a request, and report.md."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jinja2

from segformer_spark import __version__
from segformer_spark.evaluation.result_folder import REPORT, REPORT_DIGEST
from segformer_spark.report.content import ReportContent, read_content
from segformer_spark.run.atomic import write_text
from segformer_spark.run.record import command_record, scrub
from segformer_spark.run.system import now

MARKDOWN = "report.md"


def write_report(path: Path) -> Path:
    """Write report.html, its digest line and report.md into a run directory or an evaluation's folder.

    Returns:
        The path of report.html.

    Raises:
        UserError: `path` is neither, or cannot be read.
    """
    content = read_content(path)
    html = _rendered("report.html.j2", content)
    write_text(path / REPORT, html)
    digest = hashlib.sha256((path / REPORT).read_bytes()).hexdigest()
    write_text(path / REPORT_DIGEST, f"{digest}  {REPORT}\n")
    write_text(path / MARKDOWN, _rendered("report.md.j2", content))
    return path / REPORT


def _rendered(template: str, content: ReportContent) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segformer_spark.report"),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": score, "number": number, "seconds": seconds}
    return environment.get_template(template).render(
        content=content, version=__version__, written=now(), command=scrub(command_record())
    )


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
