"""`predict`: images without labels -> masks, pictures and a table. Resumable, on any number of processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer_spark.config.image_size import setting_of
from segformer_spark.data.image_header import ImageHeader, read_header, refuse_too_large
from segformer_spark.data.large_image import LargeImage, can_read_in_bands
from segformer_spark.data.sampler import rank_indices
from segformer_spark.distributed.process_group import Group
from segformer_spark.distributed.result_lease import hold_results
from segformer_spark.errors import ConfigError, DataError, UserError
from segformer_spark.evaluation.enlarged import Keep
from segformer_spark.evaluation.record import session_record
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.files.atomic import write_csv, write_json
from segformer_spark.files.checksums import LEASE
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.prediction.inputs import InputImage, find_images
from segformer_spark.prediction.large import LARGE_PIXELS, predict_large, why_not_in_bands
from segformer_spark.prediction.results import Kind, Results, Row
from segformer_spark.run.console import logger, progress, progress_bar
from segformer_spark.run.record import host_record
from segformer_spark.run.system import now

_SETTINGS, _MANIFEST, _TABLE, _CLASSES = "settings.json", "manifest.json", "predictions.csv", "classes.csv"


@dataclass(frozen=True)
class PredictOptions:
    """What the command line says.

    Attributes:
        model: run directory, exported model, published SegFormer, or ONNX file.
        inputs: files, folders and patterns.
        output: folder of the results.
        kinds: which files are written of each image; ids always.
        keep: how probabilities are written, if they are among the kinds.
        overwrite: replace results of another model or other settings.
        large_pixels: images of more pixels are predicted in bands.
        others: further models, which are an ensemble with the first.
    """

    model: Path
    inputs: Sequence[Path]
    output: Path
    kinds: Sequence[Kind] = ("ids", "color", "overlay")
    keep: Keep = "uint8"
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    overwrite: bool = False
    large_pixels: int = LARGE_PIXELS
    others: tuple[Path, ...] = ()


def run_prediction(options: PredictOptions, group: Group) -> list[Row]:
    """Predict what is missing and write the table; returns its rows, in the order of the names. Collective.

    Raises:
        UserError: unsuitable model or images, or results of another model in the way.
    """
    with hold_results(options.output, group):
        return _predict(options, group)


def _predict(options: PredictOptions, group: Group) -> list[Row]:
    started = now()
    images = group.on_main(lambda: find_images(options.inputs, options.output))
    session = Session.open([options.model, *options.others], options.inference, group)
    _refuse_unsuitable(session)
    kinds: tuple[Kind, ...] = tuple(dict.fromkeys(("ids", *options.kinds)))
    keep: Keep = options.keep if "probabilities" in kinds else None
    results = Results(options.output, kinds, session.card.classes)
    settings = group.on_main(lambda: _settings(options, session, keep))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    todo = group.on_main(lambda: _prepare(options, results, images, settings, digest))
    own = [images[todo[index]] for index in rank_indices(len(todo), group.rank, group.world_size)]
    if group.is_main:
        done = len(images) - len(todo)
        logger.info("%d images, %d predicted already, %d to do", len(images), done, len(todo))
    with group.sharing_errors():
        _Work(session, options, results, keep, digest, visible=group.is_main).run(own)
    hosts = group.gather(host_record(group.device))

    def finish() -> list[Row]:
        rows = [_finished_row(results, image, digest) for image in images]
        table = [row.cells(image.name, results.classes) for image, row in zip(images, rows, strict=True)]
        write_csv(options.output / _TABLE, list(table[0]), table)
        manifest = {**settings, "num_images": len(images), **session_record(session, hosts, started)}
        write_json(options.output / _MANIFEST, manifest)
        return rows

    rows = group.on_main(finish)
    if group.is_main:
        logger.info("%s: %s, and %s", options.output, ", ".join(f"{kind}/" for kind in kinds), _TABLE)
    return rows


class _Work:
    """One rank's images."""

    def __init__(
        self, session: Session, options: PredictOptions, results: Results, keep: Keep, digest: str, *, visible: bool
    ) -> None:
        self.session, self.options, self.results, self.keep, self.visible = session, options, results, keep, visible
        self.digest = digest
        self.decoding = session.loading.decoding
        self._said: set[str] = set()

    def run(self, images: Sequence[InputImage]) -> None:
        whole: list[tuple[InputImage, ImageHeader]] = []
        in_bands: list[tuple[InputImage, ImageHeader]] = []
        for image in images:
            header = self._header(image)
            (in_bands if self._goes_in_bands(image, header) else whole).append((image, header))
        self._whole(whole)
        for image, header in in_bands:
            self._in_bands(image, header)

    def _header(self, image: InputImage) -> ImageHeader:
        header = read_header(image.path)
        refuse_too_large(header, image.path, self.decoding.max_pixels, self.decoding.pixels_option)
        return header

    def _goes_in_bands(self, image: InputImage, header: ImageHeader) -> bool:
        if header.height * header.width <= self.options.large_pixels:
            return False
        view, tta = self.session.view.config, self.session.tta
        upright = self.decoding.orientation == "upright"
        predictor = self.session.predictor
        why = why_not_in_bands(
            *(header, view, tta),
            upright=upright,
            keeps=self.keep is not None,
            decision=predictor.decision,
            num_models=1 + len(predictor.members),
        )
        if why is None and not can_read_in_bands():
            why = "pyvips is not installed (pip install 'segformer-spark[large]')"
        if why is None:
            return True
        if why not in self._said:
            self._said.add(why)
            logger.warning("%s is predicted as a whole, which takes much memory: %s", image.path, why)
        return False

    def _whole(self, images: Sequence[tuple[InputImage, ImageHeader]]) -> None:
        session, results = self.session, self.results
        items = session.file_items([image.path for image, _ in images], range(len(images)))
        found = session.predictor.scored(items, self.keep)
        for item, scored in progress(found, total=len(images), label="predicting", visible=self.visible):
            image, header = images[item.index]
            ids = scored.ids.cpu().numpy()
            digests = sha256_of(image.path), self.digest
            row = Row.of(ids, scored.confidence, len(results.classes), digests)
            kept = scored.probabilities
            results.write(
                image.name,
                ids,
                row,
                image=item.image,
                probabilities=None if kept is None else kept.cpu().numpy(),
                orientation=self.decoding.shown_orientation(header),
            )

    def _in_bands(self, image: InputImage, header: ImageHeader) -> None:
        with progress_bar(header.height, f"predicting {image.path.name}") as advance:
            large = LargeImage(image.path, header)
            predict_large(
                self.session.predictor, large, (sha256_of(image.path), self.digest), image.name, self.results, advance
            )


def _refuse_unsuitable(session: Session) -> None:
    if len(session.card.class_names) > 256:
        raise UserError(f"{session.folder}: {len(session.card.class_names)} classes; masks of 8 bits hold 256")
    if session.view.config.crops == "box":
        raise ConfigError(
            "the model is shown crops around labelled boxes, which these images do not have",
            "Give --crops two_pass, or --crops none.",
        )


def _settings(options: PredictOptions, session: Session, keep: Keep) -> dict[str, Any]:
    """What decides the predictions: they may only be mixed when it is equal."""
    return {
        "model_sha256": session.weights_digest(),
        "class_names": list(session.card.class_names),
        "image_size": setting_of(session.view.size),
        "inference": session.view.config.model_dump(),
        "exif_orientation": session.loading.decoding.orientation,
        "tta": session.tta,
        "decision": session.decision_record(),
        "precision": options.inference.precision,
        "probabilities": keep,
    }


def _prepare(
    options: PredictOptions, results: Results, images: Sequence[InputImage], settings: dict[str, Any], digest: str
) -> list[int]:
    """Indices of the images without results, or with those of other contents."""
    path = options.output / _SETTINGS
    options.output.mkdir(parents=True, exist_ok=True)
    before = {"decision": None} | read_json_object(path) if path.is_file() else None
    if before is None and any(child.name != LEASE for child in options.output.iterdir()):
        raise UserError(f"{options.output}: the folder is not empty and holds no predictions", "Give another --output.")
    if before is not None and before != settings and not options.overwrite:
        differing = ", ".join(key for key in settings if before.get(key) != settings[key])
        raise UserError(
            f"{options.output}: holds predictions of another model or other settings ({differing})",
            "Give another --output, or --overwrite to replace them.",
        )
    write_json(path, settings)
    classes = results.classes
    table = [
        {"id": index, "name": name, "red": color[0], "green": color[1], "blue": color[2]}
        for index, (name, color) in enumerate(zip(classes.names, classes.colors, strict=True))
    ]
    write_csv(options.output / _CLASSES, list(table[0]), table)
    return [index for index, image in enumerate(images) if not _is_done(results, image, digest)]


def _is_done(results: Results, image: InputImage, digest: str) -> bool:
    """Whether all files are there, of this image under these settings: --overwrite may have been cut off."""
    row = results.row(image.name)
    return row is not None and row.settings_sha256 == digest and row.image_sha256 == sha256_of(image.path)


def _finished_row(results: Results, image: InputImage, digest: str) -> Row:
    row = results.row(image.name)
    if row is None or row.settings_sha256 != digest:
        raise DataError(
            f"{results.folder}: the results of {image.path} are not there any more, or are another call's",
            "Give every call an --output of its own.",
        )
    return row
