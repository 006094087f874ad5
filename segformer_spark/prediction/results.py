"""Files of one prediction: ids/, color/, overlay/ and probabilities/, each with the image's name.

ids/NAME.png is written last and holds, as text, the image's digest and a row of the table: where it is there, the
others are, too.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import ClassInfo, Image, Mask
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.overlay import overlay
from segformer_spark.data.png import read_text_chunk, write_png
from segformer_spark.files.atomic import atomic_file

Kind = Literal["ids", "color", "overlay", "probabilities"]

LARGEST_OVERLAY = 2048
"""Pixels of an overlay's longer side; larger images are shown smaller."""

_KEYWORD = "segformer_spark"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Row:
    """What the table says of an image.

    Attributes:
        image_sha256: of the file.
        settings_sha256: of the settings that decided the prediction.
        height, width: of the prediction.
        confidence: mean over the pixels of the probability of their class, to four digits: further ones depend on what
            else was in the batch.
        pixels: per class.
    """

    image_sha256: str
    settings_sha256: str
    height: int
    width: int
    confidence: float
    pixels: tuple[int, ...]

    @classmethod
    def of(cls, ids: Mask, confidence: float, num_classes: int, digests: tuple[str, str] = ("", "")) -> Row:
        """Of a prediction in memory; `digests` of the file and of the settings."""
        height, width = ids.shape
        pixels = np.bincount(ids.ravel(), minlength=num_classes)
        return cls(*digests, height, width, round(confidence, 4), tuple(int(number) for number in pixels))

    def cells(self, name: str, classes: ClassInfo) -> dict[str, Any]:
        """A row of predictions.csv."""
        total = self.height * self.width
        shares = {f"share_{label}": f"{own / total:.6f}" for label, own in zip(classes.names, self.pixels, strict=True)}
        sizes = {"width": self.width, "height": self.height}
        return {"image": name, **sizes, "confidence": f"{self.confidence:.4f}", **shares}


@dataclass(frozen=True)
class Results:
    """Where the files of predictions lie."""

    folder: Path
    kinds: Sequence[Kind]
    classes: ClassInfo

    def path(self, kind: Kind, name: str) -> Path:
        """The file of an image."""
        return self.folder / kind / f"{name}{'.npz' if kind == 'probabilities' else '.png'}"

    def row(self, name: str) -> Row | None:
        """What was predicted of an image before; None where a file of it is missing."""
        if not all(self.path(kind, name).is_file() for kind in self.kinds):
            return None
        with suppress(OSError, ValueError, TypeError, KeyError):
            raw = json.loads(read_text_chunk(self.path("ids", name), _KEYWORD) or "")
            raw["pixels"] = tuple(raw["pixels"])
            return Row(**raw)
        return None

    def text(self, row: Row) -> dict[str, str]:
        """What the file of ids says beside its pixels."""
        return {_KEYWORD: json.dumps(asdict(row))}

    def write(
        self,
        name: str,
        ids: Mask,
        row: Row,
        *,
        image: Image | None,
        probabilities: NDArray[Any] | None,
        orientation: int,
    ) -> None:
        """Write all files of an image.

        Args:
            image: its pixels, for the overlay.
            orientation: EXIF tag of pixels as they are stored; ids and colours carry it, overlays are upright.
        """
        if probabilities is not None:
            write_probabilities(self.path("probabilities", name), probabilities)
        if "color" in self.kinds:
            write_png(self.path("color", name), ids, palette=self.classes.colors, orientation=orientation)
        if "overlay" in self.kinds:
            assert image is not None
            write_png(self.path("overlay", name), shown_over(image, ids, self.classes, orientation))
        write_png(self.path("ids", name), ids, orientation=orientation, text=self.text(row))


def overlay_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an overlay."""
    factor = min(1.0, LARGEST_OVERLAY / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shown_over(image: Image, ids: Mask, classes: ClassInfo, orientation: int) -> Image:
    """The picture with its classes laid over it, upright, no larger than LARGEST_OVERLAY."""
    size = overlay_size(ids.shape)
    if size != ids.shape:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        ids = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return turn_upright(overlay(image, ids, classes), orientation)


def write_probabilities(path: Path, probabilities: NDArray[Any]) -> None:
    """One compressed array "probabilities" (C, H, W), the same bytes for the same values.

    uint8 is probability x 255; numpy.load reads the file.
    """
    array = io.BytesIO()
    np.lib.format.write_array(array, np.ascontiguousarray(probabilities), allow_pickle=False)
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("probabilities.npy", _EPOCH), array.getvalue(), zipfile.ZIP_DEFLATED)
