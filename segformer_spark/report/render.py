"""report.html, which a browser opens from disk without a request, and report.md."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.evaluation.result_folder import REPORT, REPORT_DIGEST, REPORT_TEXT
from segformer_spark.files.atomic import write_text
from segformer_spark.files.digest import sha256_of
from segformer_spark.report.content import read_content
from segformer_spark.report.templating import rendered


def write_report(path: Path) -> Path:
    """Write report.html, report.md and their digests into a run directory or an evaluation's folder.

    Returns:
        The path of report.html.

    Raises:
        UserError: `path` is neither, or cannot be read.
    """
    content = read_content(path)
    for name in (REPORT, REPORT_TEXT):
        write_text(path / name, rendered(f"{name}.j2", content=content))
    write_text(path / REPORT_DIGEST, "".join(f"{sha256_of(path / name)}  {name}\n" for name in (REPORT, REPORT_TEXT)))
    return path / REPORT
