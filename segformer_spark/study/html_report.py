"""A report as one HTML file: text, tables, and figures inside it, so that it can be sent as it is."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer_spark.run.atomic import write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
img { max-width: 100%; margin: .5rem 0; } h2 { margin-top: 2.2rem; } .note { color: #555; }
"""


@dataclass
class Report:
    """Collects sections; `write` makes the file."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f'<p class="note">{html.escape(text)}</p>')

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
        """A table; columns that are empty in all rows are left out."""
        names = [
            name
            for name in columns or (rows[0] if rows else ())
            if any(row.get(name) not in (None, "") for row in rows)
        ]
        head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
        body = "".join("<tr>" + "".join(_cell(row.get(name)) for name in names) + "</tr>" for row in rows)
        self.parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def figure(self, path: Path, caption: str) -> None:
        """A PNG, inside the file."""
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        shown = html.escape(caption)
        image = f'<img alt="{shown}" src="data:image/png;base64,{data}">'
        self.parts.append(f'<figure>{image}<figcaption class="note">{shown}</figcaption></figure>')

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>'
        body = "\n".join([f"<h1>{html.escape(self.title)}</h1>", *self.parts])
        write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n')


def _cell(value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, float):
        return f"<td>{value:.4g}</td>" if abs(value) < 1000 else f"<td>{value:,.0f}</td>"
    if isinstance(value, int):
        return f"<td>{value:,}</td>"
    return f'<td class="text">{html.escape(str(value))}</td>'
