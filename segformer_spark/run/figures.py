"""Figures without a display: a matplotlib figure, and its way to a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segformer_spark.files.atomic import atomic_file

_DPI = 120


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of this size in inches, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=_DPI)
