"""report.html, which a browser opens from disk without a request, and report.md."""

from __future__ import annotations

import hashlib
from pathlib import Path

from segformer_spark.evaluation.result_folder import REPORT, REPORT_DIGEST
from segformer_spark.report.content import read_content
from segformer_spark.report.templating import rendered
from segformer_spark.run.atomic import write_text

MARKDOWN = "report.md"


def write_report(path: Path) -> Path:
    """Write report.html, its digest line and report.md into a run directory or an evaluation's folder.

    Returns:
        The path of report.html.

    Raises:
        UserError: `path` is neither, or cannot be read.
    """
    content = read_content(path)
    html = rendered("report.html.j2", content=content)
    write_text(path / REPORT, html)
    digest = hashlib.sha256((path / REPORT).read_bytes()).hexdigest()
    write_text(path / REPORT_DIGEST, f"{digest}  {REPORT}\n")
    write_text(path / MARKDOWN, rendered("report.md.j2", content=content))
    return path / REPORT
