"""Bands give what whole images give; a large image takes little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.image_header import read_header
from segformer_spark.evaluation.decision import Decision
from segformer_spark.evaluation.postprocessing import Postprocessing
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.prediction import results
from segformer_spark.prediction.large import why_not_in_bands
from segformer_spark.prediction.predict import PredictOptions, run_prediction
from segformer_spark.prediction.results import Row
from segformer_spark.run.system import forget_highest_memory, resident_bytes
from tests.data.image_files import encode, picture, save
from tests.ranks import Group, run_on_ranks
from tests.sessions import group_of_one
from tests.tiny import export_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("model") / "tiny")


def predict(model: Path, photos: Path, output: Path, large_pixels: int, **settings: Any) -> list[Row]:
    with group_of_one() as group:
        options = PredictOptions(
            model,
            [photos],
            output,
            inference=InferenceSettings(keep_images=True, **settings),
            large_pixels=large_pixels,
        )
        return run_prediction(options, group)


@pytest.mark.parametrize(
    ("view", "tta"),
    [
        ({}, "none"),
        ({}, "flips"),
        ({"resize": "short_side"}, "hflip"),
        ({"resize": "native", "window": 96}, "none"),
        ({"resize": "native", "window": 64, "overlap": 0.6}, "hflip"),
        ({"resize": "native", "window": 64, "overlap": 0.6, "window_weights": "gaussian"}, "hflip"),
        ({"resize": "native", "window": 1024}, "none"),
        ({}, "turns"),
    ],
)
def test_bands_decide_as_the_whole(
    model: Path, tmp_path: Path, view: dict[str, Any], tta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LARGEST_OVERLAY", 100)
    for name, kind, size in (("a.png", "PNG", (301, 233)), ("b.jpg", "JPEG", (97, 420))):
        save(tmp_path / "photos" / name, encode(picture(*size), kind, 8))
    whole = predict(model, tmp_path / "photos", tmp_path / "whole", 10**9, view=view, tta=tta)
    bands = predict(model, tmp_path / "photos", tmp_path / "bands", 100, view=view, tta=tta)
    for one, other in zip(whole, bands, strict=True):
        assert other.confidence == pytest.approx(one.confidence, abs=1e-4)
        assert (other.height, other.width) == (one.height, one.width)
    for path in sorted((tmp_path / "whole").glob("*/*.png")):
        other_path = tmp_path / "bands" / path.relative_to(tmp_path / "whole")
        with PIL.Image.open(path) as first, PIL.Image.open(other_path) as second:
            assert first.size == second.size
            assert first.getexif() == second.getexif()
            differing = (np.asarray(first) != np.asarray(second)).mean()
        # An overlay's pixels are averages, and its ids those of other pixels.
        assert differing <= (0.05 if path.parent.name == "overlay" else 1e-4), path
    assert not list((tmp_path / "bands").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("view", "decision"),
    [
        ({}, Decision("expected_iou", temperature=1.5, floor=0.1)),
        ({"resize": "native", "window": 96}, Decision("thresholds", temperature=2.0, thresholds=(1.0, 0.4, 0.7))),
    ],
)
def test_decisions_hold_in_bands(model: Path, tmp_path: Path, view: dict[str, Any], decision: Decision) -> None:
    save(tmp_path / "photos" / "a.png", encode(picture(301, 233), "PNG", 8))
    shares = {}
    for name, pixels in (("whole", 10**9), ("bands", 100)):
        (row,) = predict(model, tmp_path / "photos", tmp_path / name, pixels, view=view, decision=decision)
        shares[name] = np.array(row.pixels)
    (plain,) = predict(model, tmp_path / "photos", tmp_path / "plain", 100, view=view)
    assert np.abs(shares["whole"] - shares["bands"]).sum() <= 1e-4 * shares["whole"].sum()
    assert plain.pixels != tuple(shares["bands"])


@pytest.mark.parametrize(
    ("view", "tta", "options", "reason"),
    [
        ({}, "none", {}, None),
        ({"crops": "two_pass"}, "none", {}, "crops"),
        ({"resize": "native"}, "none", {}, "inference.window"),
        ({"resize": "native", "window": 64}, "flips", {}, "--tta flips"),
        ({}, "none", {"upright": True}, "EXIF"),
        ({}, "none", {"keeps": True}, "probabilities"),
        ({}, "scales", {}, "every scale"),
        ({}, "none", {"num_models": 2}, "several models"),
        ({"resize": "native", "window": 64}, "none", {"decision": Decision("expected_iou")}, "whole image"),
        ({}, "none", {"decision": Decision(postprocessing=Postprocessing((1,)))}, "parts of the whole image"),
    ],
)
def test_what_needs_the_whole_image_is_said(
    tmp_path: Path, view: dict[str, Any], tta: str, options: dict[str, Any], reason: str | None
) -> None:
    path = save(tmp_path / "a.jpg", encode(picture(), "JPEG", 6))
    given = {"upright": False, "keeps": False, **options}
    found = why_not_in_bands(read_header(path), InferenceConfig(**view), tta, **given)
    assert found is None if reason is None else reason in str(found)


def growth(group: Group, model: str, folder: str) -> int:
    """MiB that the prediction of the large image needs beside what that of the small one has used before."""
    view = {"resize": "native", "window": 512, "overlap": 0.0}
    settings = InferenceSettings(view=view, max_pixels=10**9, keep_images=True)
    before = 0
    for name in ("small", "large"):
        forget_highest_memory()
        before = resident_bytes() or 0
        output = Path(folder) / f"out_{name}"
        run_prediction(PredictOptions(Path(model), [Path(folder) / name], output, inference=settings), group)
    return ((resident_bytes(highest=True) or 0) - before) // 2**20


def test_6000_pixels_take_little_memory(model: Path, tmp_path: Path) -> None:
    """Whole, it would have 103 MiB decoded and 412 normalised; its ids, which wait in a mapped file, have 34."""
    pixels = np.asarray(PIL.Image.fromarray(picture(60, 60)).resize((6000, 6000), PIL.Image.Resampling.NEAREST))
    for name, part in (("large", pixels), ("small", pixels[:600, :600])):
        (tmp_path / name).mkdir()
        PIL.Image.fromarray(part).save(tmp_path / name / "a.jpg", quality=70)
    assert run_on_ranks(1, growth, str(model), str(tmp_path))[0] < 350
    with PIL.Image.open(tmp_path / "out_large" / "ids" / "a.png") as ids:
        assert ids.size == (6000, 6000)
