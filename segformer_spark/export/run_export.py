"""`export`: a run's model as ONNX, as a program of torch.export, or as a folder for the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from segformer_spark.checkpoint.model_readme import readme_text
from segformer_spark.checkpoint.onnx_model import facts_of
from segformer_spark.config.image_size import size_text
from segformer_spark.config.stored import load_stored_config
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.decode import read_image
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.transforms import image_to_tensor, normalize_images
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.evaluation.result_folder import RESULTS
from segformer_spark.evaluation.saved_decision import decision_path, read_decision, write_decision
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.export.exportable import exportable
from segformer_spark.export.onnx_export import dynamic_shapes, export_onnx, needs_onnx, padded_size
from segformer_spark.export.quantize import quantize
from segformer_spark.files.atomic import atomic_file, atomic_folder, write_text
from segformer_spark.files.checksums import write_checksums
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.models.segformer import SegFormer
from segformer_spark.prediction.inputs import find_images
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory

Format = Literal["onnx", "torch-export", "safetensors"]
_LEAST_SIDE, _TRACED_SIDE = 64, 256
"""torch.export proves nothing about maps that could have one row: sides from 64 on, traced with larger ones."""

SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ""}


@dataclass(frozen=True)
class ExportOptions:
    """What the command line says.

    Attributes:
        model: run directory or exported model.
        format: what is written.
        output: file, or for safetensors folder.
        preprocessing: normalisation inside of the graph, which then takes uint8 RGB.
        int8: quantise, with images of `calibration`.
        calibration: files, folders or patterns; empty takes validation images of the run.
        num_calibration: how many of them.
    """

    model: Path
    format: Format
    output: Path
    preprocessing: bool = False
    int8: bool = False
    calibration: Sequence[Path] = ()
    num_calibration: int = 32


def run_export(options: ExportOptions, group: Group) -> Path:
    """Write the model; returns where.

    Raises:
        UserError: it cannot be written in this format, or does not compute what PyTorch computes.
    """
    session = Session.open(options.model, InferenceSettings(), group)
    session.refuse_several("export")
    if options.output.exists():
        raise UserError(f"{options.output}: this exists", "Remove it, or give another --output.")
    if options.format == "safetensors":
        _copy(session, options.output)
    elif options.format == "torch-export":
        _torch_export(session, options)
    else:
        _onnx(session, options)
    if options.format != "torch-export":
        _carry_decision(session, options.output)
    logger.info("%s", options.output)
    return options.output


def _copy(session: Session, output: Path) -> None:
    """The model's folder, with a README that is made anew."""
    if not session.folder.is_dir():
        raise UserError(f"{session.folder}: an ONNX file has no safetensors; give the run")
    transformers = isinstance(session.model, SegFormer)
    with atomic_folder(output) as folder:
        for file in sorted(session.folder.iterdir()):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        text = readme_text(session.card, transformers=transformers, intervals=_intervals(session))
        write_text(folder / "README.md", text)
        write_checksums(folder)


def _carry_decision(session: Session, output: Path) -> None:
    """The decision that was saved for the run's weights, for the file that was written of them."""
    path = decision_path(session.folder, session.run)
    if not path.is_file():
        return
    saved = read_decision(path)
    if saved.model_sha256 != sha256_of(session.weights_file):
        logger.warning("%s was made for another model: not exported", path)
        return
    weights = output if output.is_file() else output / session.weights_file.name
    record = {**saved.model_dump(), "model_sha256": sha256_of(weights)}
    write_decision(decision_path(output, None), record)
    if output.is_dir():
        write_checksums(output)


def _intervals(session: Session) -> dict[str, Any]:
    """95 % intervals of an evaluation of these weights in the run; empty without one."""
    if session.run is None:
        return {}
    digest = sha256_of(session.weights_file)
    for path in sorted(RunDirectory(session.run).evaluation.glob(f"*/{RESULTS}")):
        results = read_json_object(path)
        models = results.get("record", {}).get("models", [])
        plain = results.get("record", {}).get("decision") is None and results.get("record", {}).get("tta") == "none"
        if plain and [one.get("sha256") for one in models] == [digest]:
            found: dict[str, Any] = results.get("intervals", {})
            return found
    return {}


def _torch_export(session: Session, options: ExportOptions) -> None:
    """A program that torch.export.load reads, without this package."""
    model, card = session.model, session.card
    dtype = torch.uint8 if options.preprocessing else torch.float32
    height, width = padded_size(card.image_size, model.size_multiple)
    images = torch.zeros(2, 3, max(height, _TRACED_SIDE), max(width, _TRACED_SIDE + 64), dtype=dtype)
    graph = exportable(model, preprocessing=options.preprocessing)
    try:
        program = _dynamic_program(graph, images, dynamic_shapes(model, _LEAST_SIDE))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = size_text((height, width))
        logger.warning("the program is for images of %s alone: %s", size, str(error).strip().splitlines()[0])
        images = torch.zeros(1, 3, height, width, dtype=dtype)
        program = torch.export.export(graph, (images,), strict=False)
    with torch.inference_mode():
        rng = np.random.default_rng(0)
        pixels = torch.from_numpy(rng.integers(0, 256, tuple(images.shape), dtype=np.uint8))
        shown = pixels if options.preprocessing else normalize_images(pixels)
        expected, found = model(normalize_images(pixels)), program.module()(shown)
        difference = float((found - expected).abs().max() / expected.abs().max())
    logger.info("largest difference of logits to PyTorch's: %.1e of the largest logit", difference)
    with atomic_file(options.output) as stream:
        torch.export.save(program, stream)


def _dynamic_program(graph: torch.nn.Module, images: Tensor, shapes: Any) -> Any:
    # Whether a size is one that the network can take is asked at run time, and not proved before.
    return torch.export.export(
        graph, (images,), dynamic_shapes=shapes, strict=False, prefer_deferred_runtime_asserts_over_guards=True
    )


def _onnx(session: Session, options: ExportOptions) -> None:
    needs_onnx()
    if not options.int8:
        difference = export_onnx(session.model, session.card, options.output, preprocessing=options.preprocessing)
        logger.info("largest difference of logits to PyTorch's: %.1e of the largest logit", difference)
        return
    images = _calibration_images(session, options)
    full = options.output.with_name(f".{options.output.name}.fp32")
    try:
        difference = export_onnx(session.model, session.card, full, preprocessing=options.preprocessing)
        logger.info("fp32: largest difference of logits to PyTorch's: %.1e of the largest logit", difference)
        content = full.read_bytes()
    finally:
        full.unlink(missing_ok=True)
    found = quantize(content, facts_of(content), images)
    kept = f", in fp32: {', '.join(found.kept)}" if found.kept else ""
    logger.info("int8: %.2f %% of the pixels of %d images have the class that fp32 gives them%s",
                100 * found.agreement, len(images), kept)  # fmt: skip
    with atomic_file(options.output) as stream:
        stream.write(found.content)


def _calibration_images(session: Session, options: ExportOptions) -> list[Tensor]:
    """Images as the model is shown them, evenly spread over those that there are."""
    view = session.view
    if view.config.window is not None or view.config.crops != "none":
        logger.info("calibration shows whole images, while this model is shown windows or crops")
    if options.calibration:
        files = [image.path for image in find_images(options.calibration, options.output)]
        native = (read_image(files[i], decoding=session.loading.decoding) for i in _spread(len(files), options))
    else:
        dataset = _validation_images(session)
        native = (dataset.load(i).image for i in _spread(len(dataset), options))
    return [normalize_images(image_to_tensor(view.whole(image))[None]) for image in native]


def _spread(number: int, options: ExportOptions) -> Iterable[int]:
    chosen: list[Any] = np.linspace(0, number - 1, min(number, options.num_calibration)).round().tolist()
    return (int(index) for index in chosen)


def _validation_images(session: Session) -> SegmentationDataset:
    if session.run is None:
        raise UserError(
            f"{session.folder} does not lie in a run directory, so that there are no validation images",
            "Give some with --calibration FOLDER.",
        )
    data = load_stored_config(session.run / "config.yaml").config.data
    try:
        return open_dataset(data, data.val_split)
    except UserError as error:
        raise ConfigError(f"int8 needs images: {error}", "Or give some with --calibration FOLDER.") from error
