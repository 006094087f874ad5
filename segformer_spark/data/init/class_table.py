"""From what masks hold to a class table: which numbers or colours are classes, their names, what is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from segformer_spark.data.dataset import Color
from segformer_spark.data.init.survey import MOST_CLASSES, MaskFacts, Survey, main_colors
from segformer_spark.data.palette import distinct_colors
from segformer_spark.errors import DataError, UserError

_IGNORED, _BINARY = 255, {0, 255}
_MOST_LABELS = 64
_COLOR_NAMES: Mapping[str, Color] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "grey": (128, 128, 128),
    "maroon": (128, 0, 0),
    "dark_green": (0, 128, 0),
    "navy": (0, 0, 128),
    "olive": (128, 128, 0),
    "teal": (0, 128, 128),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "brown": (165, 42, 42),
    "pink": (255, 192, 203),
}


@dataclass(frozen=True)
class ClassRow:
    """A class: `label` in index masks, or None; `values` are the numbers or colours of masks that stand for it."""

    name: str
    color: Color
    label: int | None
    values: tuple[int | Color, ...]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a folder.

    Attributes:
        masks: index or color.
        rows: the classes, the background first where there is one.
        background: its name.
        ignore_id: label of index masks that neither trains nor counts.
        nearest_color: whether pixels lie between the colours.
        notes: what was concluded and from what, for the user.
    """

    masks: Literal["index", "color"]
    rows: Sequence[ClassRow]
    background: str | None
    ignore_id: int | None = None
    nearest_color: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    def pixels(self, facts: MaskFacts) -> list[int]:
        """Pixels per class of one mask."""
        return [sum(facts.counts[value] for value in row.values) for row in self.rows]

    def ignored(self, facts: MaskFacts) -> int:
        """Pixels of no class."""
        return sum(facts.counts.values()) - sum(self.pixels(facts))


def class_table(survey: Survey, object_name: str, names: Sequence[str] | None = None) -> ClassTable:
    """Conclude the classes.

    Args:
        object_name: of the class of masks that have one beside the background.
        names: of all classes, in the order of their ids, or colours by frequency; None proposes names.

    Raises:
        DataError: masks that leave open what their classes are.
        UserError: another number of names than of classes.
    """
    table = _of_numbers(survey, object_name) if survey.kind == "index" else _of_colors(survey, object_name)
    if len(table.rows) < 2:
        raise DataError(
            f"all masks hold one class, {table.rows[0].values[0] if table.rows else 'none'}, so there is nothing to "
            "tell apart",
            "Are these the masks?",
        )
    return table if names is None else _renamed(table, names)


def _renamed(table: ClassTable, names: Sequence[str]) -> ClassTable:
    found = ", ".join(row.name for row in table.rows)
    if len(names) != len(table.rows):
        raise UserError(f"--classes: {len(names)} names for {len(table.rows)} classes in the masks: {found}")
    if len(set(names)) != len(names):
        raise UserError(f"--classes: a name occurs twice: {', '.join(names)}")
    rows = [replace(row, name=name) for name, row in zip(names, table.rows, strict=True)]
    background = next(
        (new.name for new, row in zip(rows, table.rows, strict=True) if row.name == table.background), None
    )
    return replace(table, rows=rows, background=background)


def _of_numbers(survey: Survey, object_name: str) -> ClassTable:
    labels = sorted(int(label) for label in survey.total if isinstance(label, int))
    notes, ignore_id = [], None
    if labels[-1] > MOST_CLASSES or labels[0] < 0:
        raise DataError(
            f"the masks hold numbers from {labels[0]} to {labels[-1]}, class numbers are 0 to {MOST_CLASSES}",
            "Are these numbers of objects, or depths? Save masks of class numbers with 8 bits.",
        )
    if len(labels) > _MOST_LABELS:
        raise DataError(
            f"the masks hold {len(labels)} different numbers; this looks like a picture, or like numbers of objects",
            f"Are these the masks? Up to {_MOST_LABELS} classes are taken from numbers.",
        )
    if set(labels) == _BINARY:
        names = {0: "background", 255: object_name}
        notes.append("masks of 0 and 255: 0 is the background")
    else:
        rest = [label for label in labels if label != _IGNORED]
        if _IGNORED in labels and rest and rest[-1] < _MOST_LABELS and len(rest) > 1:
            ignore_id, labels = _IGNORED, rest
            notes.append("255 among small numbers is taken for pixels without a label (ignore_id)")
        names = {label: f"class_{label}" for label in labels}
        if labels[0] == 0:
            names[0] = "background"
            notes.append("0 is taken for the background")
        if len(labels) == 2 and labels[0] == 0:
            names[labels[1]] = object_name
    colors = _palette_colors(survey, labels, notes) or dict(
        zip(labels, distinct_colors(len(labels), with_black=labels[0] == 0), strict=True)
    )
    rows = [ClassRow(names[label], colors[label], label, (label,)) for label in labels]
    return ClassTable("index", rows, "background" if 0 in labels else None, ignore_id, notes=tuple(notes))


def _palette_colors(survey: Survey, labels: Sequence[int], notes: list[str]) -> dict[int, Color] | None:
    """The colours that the masks' palettes give their labels; None where they say nothing.

    Raises:
        DataError: two masks show one label in different colours.
    """
    colors: dict[int, Color] = {}
    origin: dict[int, MaskFacts] = {}
    for one in survey.masks:
        if all(color == (label, label, label) for label, color in one.palette.items()):
            continue  # grey levels
        for label, color in one.palette.items():
            if colors.setdefault(label, color) != color:
                raise DataError(
                    f"{origin[label].mask} shows the number {label} in {colors[label]}, {one.mask} in {color}",
                    "Are the numbers right or the colours? For colours, save the masks as RGB images; for numbers, "
                    "save them as grey images.",
                )
            origin.setdefault(label, one)
    if any(label not in colors for label in labels) or len({colors[label] for label in labels}) < len(labels):
        return None
    notes.append("colours are those of the masks' palettes")
    return {label: colors[label] for label in labels}


def _of_colors(survey: Survey, object_name: str) -> ClassTable:
    found, mixed = main_colors(survey)
    ordered = sorted(found, key=lambda color: color != (0, 0, 0))  # black first, then by frequency
    background = "background" if ordered[0] == (0, 0, 0) else None
    names = [_color_name(color) for color in ordered]
    names = [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]
    notes = []
    if background is not None:
        names[0] = background
        notes.append("black is taken for the background")
        if len(names) == 2:
            names[1] = object_name
    if mixed > 0:
        notes.append(f"{mixed:.2%} of the pixels lie between the colours, as at smoothed edges (nearest_color)")
    # What is left between the colours goes to the nearest.
    rows = [ClassRow(name, color, None, tuple(found[color])) for name, color in zip(names, ordered, strict=True)]
    return ClassTable("color", rows, background, nearest_color=mixed > 0 or survey.lossy, notes=tuple(notes))


def _color_name(color: Color) -> str:
    distances = {
        name: sum((a - b) ** 2 for a, b in zip(color, other, strict=True)) for name, other in _COLOR_NAMES.items()
    }
    return min(distances, key=lambda name: distances[name])
