"""A page of text, tables and figures as one HTML file, so that it can be sent as it is."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer_spark.files.atomic import write_text
from segformer_spark.files.regular_file import read_regular
from segformer_spark.report.templating import rendered


@dataclass
class Page:
    """Collects sections; `write` makes the file."""

    title: str
    parts: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append({"kind": "heading", "text": text})

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append({"kind": "text", "text": text})

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
        """A table; columns that are empty in all rows are left out."""
        names = columns or list(dict.fromkeys(name for row in rows for name in row))
        known = {name: [row.get(name) for row in rows if row.get(name) not in (None, "")] for name in names}
        shown = [name for name in names if known[name]]
        heads = [
            {"name": name.replace("_", " "), "is_text": any(isinstance(value, str) for value in known[name])}
            for name in shown
        ]
        cells = [[_cell(row.get(name)) for name in shown] for row in rows]
        self.parts.append({"kind": "table", "columns": heads, "rows": cells})

    def figure(self, path: Path, caption: str) -> None:
        """A PNG, inside the file."""
        data = base64.b64encode(read_regular(path)).decode("ascii")
        self.parts.append({"kind": "figure", "text": caption, "uri": f"data:image/png;base64,{data}"})

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_text(path, rendered("page.html.j2", title=self.title, parts=self.parts))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
