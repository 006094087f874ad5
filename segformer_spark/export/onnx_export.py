"""A model as ONNX, compared with PyTorch before it takes its place."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segformer_spark.checkpoint.export import ModelCard
from segformer_spark.checkpoint.onnx_model import METADATA, OnnxFacts, OnnxModel
from segformer_spark.config.image_size import Size, size_text
from segformer_spark.data.transforms import normalize_images
from segformer_spark.errors import UserError
from segformer_spark.export.exportable import exportable
from segformer_spark.files.atomic import atomic_file
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.run.console import logger

OPSET = 20
"""The first with Gelu, which onnxruntime has as one kernel."""

LARGEST_DIFFERENCE = 1e-4
"""Of fp32 logits to PyTorch's, relative to the largest logit."""

_LARGEST_SIDE, _LARGEST_BATCH = 65536, 1024


def needs_onnx() -> Any:
    """The onnx package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs packages that are not installed ({error.name})",
            "Install them: pip install 'segformer-spark[export]'",
        ) from error
    return onnx


def export_onnx(model: SegmentationModel, card: ModelCard, path: Path, *, preprocessing: bool = False) -> float:
    """Write a model; returns the largest relative difference of its logits to PyTorch's.

    Batch, height and width are dynamic; a network that torch.export knows for one size only is written for the card's,
    which is logged.

    Raises:
        UserError: the packages are missing, or the difference is above LARGEST_DIFFERENCE; nothing is written then.
    """
    onnx = needs_onnx()
    model.eval()
    dynamic, reason = True, ""
    try:
        written = _traced(model, card.image_size, preprocessing=preprocessing, dynamic=True)
        _check_sizes(written, model, card.image_size, preprocessing=preprocessing)
    except (RuntimeError, ValueError, AssertionError, torch.onnx.OnnxExporterError) as error:
        dynamic, reason = False, str(error.__cause__ or error).strip().splitlines()[0]
    if not dynamic:
        size = padded_size(card.image_size, model.size_multiple)
        logger.warning("%s is written for images of %s alone: %s", path, size_text(size), reason)
        written = _traced(model, card.image_size, preprocessing=preprocessing, dynamic=False)
    facts = OnnxFacts(
        card=asdict(card),
        preprocessing=preprocessing,
        size_multiple=model.size_multiple,
        output_stride=model.output_stride,
        fixed_size=None if dynamic else padded_size(card.image_size, model.size_multiple),
    )
    set_facts(written, facts)
    content = written.SerializeToString()
    difference = largest_difference(
        OnnxModel(content, facts), model, compared_sizes(model, card.image_size, dynamic=dynamic)
    )
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"{path}: logits differ from PyTorch's by {difference:.1e} of the largest one, {LARGEST_DIFFERENCE:g} are "
            "allowed; nothing was written"
        )
    onnx.checker.check_model(written)
    with atomic_file(path) as stream:
        stream.write(content)
    return difference


def set_facts(written: Any, facts: OnnxFacts) -> None:
    """Store in an ONNX model what `OnnxModel` needs to know of it."""
    entry = written.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(asdict(facts))


def padded_size(size: Size, multiple: int) -> Size:
    """The next (height, width) that divides."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def compared_sizes(model: SegmentationModel, image_size: Size, *, dynamic: bool) -> list[tuple[int, int, int]]:
    """(batch, height, width) that a written model is compared on: its own size, and odd ones."""
    own = (1, *image_size)
    if not dynamic:
        return [own]
    least = max(32, model.min_side)
    return [own, (1, least + 65, least + 99), (3, least + 33, least + 1)]


def largest_difference(
    written: SegmentationModel, model: SegmentationModel, sizes: Sequence[tuple[int, int, int]]
) -> float:
    """Of the logits of random images, relative to the largest logit."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch, height, width in sizes:
        pixels = torch.from_numpy(rng.integers(0, 256, (batch, 3, height, width), dtype=np.uint8))
        with torch.inference_mode():
            images = normalize_images(pixels, "cpu")
            expected, found = model(images), written(images)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def _check_sizes(written: Any, model: SegmentationModel, size: Size, *, preprocessing: bool) -> None:
    """Raise ValueError where a model that was traced for any size answers for one only."""
    facts = OnnxFacts({}, preprocessing, model.size_multiple, model.output_stride)
    runnable = OnnxModel(written.SerializeToString(), facts)
    for batch, height, width in compared_sizes(model, size, dynamic=True):
        images = torch.zeros(batch, 3, height, width)
        with torch.inference_mode():
            expected = model(images).shape
            try:
                found = runnable(images).shape
            except Exception as error:
                raise ValueError(f"onnxruntime cannot run it on {height} x {width} pixels: {error}") from error
        if found != expected:
            raise ValueError(f"at {height} x {width} pixels its logits have the shape of another size")


def _traced(model: SegmentationModel, size: Size, *, preprocessing: bool, dynamic: bool) -> Any:
    """The ONNX model of a network."""
    graph = exportable(model, preprocessing=preprocessing)
    height, width = padded_size(size, model.size_multiple)
    images = torch.zeros(2 if dynamic else 1, 3, height, width, dtype=torch.uint8 if preprocessing else torch.float32)
    with quiet_exporter():
        program: Any = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            dynamic_shapes=dynamic_shapes(model) if dynamic else None,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    return program.model_proto


def dynamic_shapes(model: SegmentationModel, least_side: int = 32) -> Any:
    """Batch, height and width as torch.export wants them said."""
    dim, step = torch.export.Dim, model.size_multiple
    batch = dim("batch", min=1, max=_LARGEST_BATCH)
    least = max(least_side, model.min_side)
    if step == 1:
        height, width = (dim(name, min=least, max=_LARGEST_SIDE) for name in ("height", "width"))
    else:
        low, high = -(-least // step), _LARGEST_SIDE // step
        height, width = (step * dim(name, min=low, max=high) for name in ("height", "width"))
    return ({0: batch, 2: height, 3: width},)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's lines about packages and passes that do not concern a user."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
