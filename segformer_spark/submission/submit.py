"""`submit`: test images -> npz files -> one validated zip. Resumable, on any number of processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer_spark.config.image_size import setting_of
from segformer_spark.data.dataset import Box, ClassInfo
from segformer_spark.data.decode import Decoding, decode_rgb, open_image
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.overlay import overlay
from segformer_spark.data.png import write_png
from segformer_spark.data.readers.spark import read_boxes
from segformer_spark.data.sampler import rank_indices
from segformer_spark.distributed.process_group import Group
from segformer_spark.distributed.result_lease import hold_results
from segformer_spark.errors import UserError
from segformer_spark.evaluation.record import session_record
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.files.atomic import remove_file, write_json
from segformer_spark.files.checksums import CHECKSUMS, write_checksums
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import logger, progress
from segformer_spark.run.record import host_record
from segformer_spark.run.system import now
from segformer_spark.submission.spark_format import (
    check_prediction,
    list_images,
    prediction_size,
    read_prediction,
    submission_name,
    validate_folder,
    write_prediction,
    write_zip,
)
from segformer_spark.submission.verify import MANIFEST, SETTINGS

_ZIP = "submission.zip"


@dataclass(frozen=True)
class SubmitOptions:
    """What the command line says.

    Attributes:
        model: run directory or exported model folder.
        images: folder of test images.
        output: folder for the npz files, the zip and the manifest.
        inference: how the model is asked.
        overwrite: throw away predictions of another model or other settings.
        num_previews: how many of the first predictions to draw over their images.
        boxes: CSV with the columns "Image name" and "Bounding box", for crops around boxes.
        others: further models, which are an ensemble with the first.
    """

    model: Path
    images: Path
    output: Path
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    overwrite: bool = False
    boxes: Path | None = None
    num_previews: int = 0
    others: tuple[Path, ...] = ()


def run_submission(options: SubmitOptions, group: Group) -> Path:
    """Predict what is missing, validate everything and write the zip; returns its path. Collective.

    Raises:
        UserError: unsuitable model or images, predictions of another model in the way, or an invalid result.
    """
    with hold_results(options.output, group):
        return _submit(options, group)


def _submit(options: SubmitOptions, group: Group) -> Path:
    started = now()
    session = Session.open([options.model, *options.others], options.inference, group)
    card, view = session.card, session.view
    if card.class_names[:3] != ("background", "body", "panels") or len(card.class_names) != 3:
        raise UserError(
            f"{session.folder}: a SPARK submission needs the classes background, body, panels; "
            f"this model knows {', '.join(card.class_names)}"
        )
    images = list_images(options.images)
    boxes = _boxes(options, view, images)
    digests = group.on_main(lambda: [sha256_of(image) for image in images])
    settings = group.on_main(lambda: _settings(options, session, images, digests))
    tags = _tags(settings, images, digests)
    todo = group.on_main(lambda: _prepare(options, images, settings, tags, session.loading.decoding))
    own = [todo[index] for index in rank_indices(len(todo), group.rank, group.world_size)]
    if group.is_main:
        logger.info("%d test images, %d predicted already, %d to do", len(images), len(images) - len(todo), len(todo))
    predictions = session.predictions(session.file_items(images, own, boxes))
    bar = progress(predictions, total=len(own), label="predicting", visible=group.is_main)
    with group.sharing_errors():
        for item, ids in bar:
            name = submission_name(images[item.index])
            write_prediction(options.output / name, ids.cpu().numpy(), tags[name])
    hosts = group.gather(host_record(group.device))

    def finish() -> Path:
        validate_folder(options.output, images, session.loading.decoding, tags)
        target = options.output / _ZIP
        write_zip(options.output, images, target)
        manifest = {
            **settings,
            "num_images": len(images),
            "files": {name: sha256_of(options.output / name) for name in sorted(tags)},
            "zip": _ZIP,
            "zip_sha256": sha256_of(target),
            **session_record(session, hosts, started),
        }
        write_json(options.output / MANIFEST, manifest)
        _draw_previews(options, session, images)
        digest = write_checksums(options.output)
        logger.info("sha256 of its SHA256SUMS: %s", digest)
        return target

    target = group.on_main(finish)
    if group.is_main:
        logger.info("%d predictions checked: names, key, shapes, dtype, classes", len(images))
        logger.info("submission: %s", target)
    return target


def _draw_previews(options: SubmitOptions, session: Session, images: list[Path]) -> None:
    """preview/NAME.png: the first predictions over their images."""
    card, decoding = session.card, session.loading.decoding
    classes = ClassInfo(card.class_names, card.colors, card.background)
    for image in images[: options.num_previews]:
        ids = read_prediction(options.output / submission_name(image))
        file = open_image(image, decoding)
        shown = overlay(decode_rgb(file, decoding), ids, classes)
        shown = turn_upright(shown, decoding.shown_orientation(file.header))
        write_png(options.output / "preview" / f"{image.stem}.png", shown)


def _boxes(options: SubmitOptions, view: InferenceView, images: list[Path]) -> dict[str, Box]:
    """Boxes by file name; empty unless they are asked for."""
    if view.config.crops != "box":
        if options.boxes is not None:
            raise UserError(f"--boxes goes with --crops box; the model is shown crops: {view.config.crops}")
        return {}
    if options.boxes is None:
        raise UserError(
            "crops around boxes need the boxes of the test images: give --boxes FILE.csv, or --crops two_pass"
        )
    boxes = read_boxes(options.boxes)
    missing = [image.name for image in images if image.name not in boxes]
    if missing:
        raise UserError(f"{options.boxes}: no box for {len(missing)} test images, first {missing[0]}")
    return boxes


def _tags(settings: Mapping[str, Any], images: Sequence[Path], digests: Sequence[str]) -> dict[str, str]:
    """{file: what ties it to its image and to what decided its prediction}."""
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {
        submission_name(image): f"image sha256 {digest}, settings sha256 {whole}"
        for image, digest in zip(images, digests, strict=True)
    }


def _settings(
    options: SubmitOptions, session: Session, images: Sequence[Path], digests: Sequence[str]
) -> dict[str, Any]:
    """What decides the predictions: they may only be mixed when it is equal."""
    return {
        "model_sha256": session.weights_digest(),
        "image_size": setting_of(session.view.size),
        "inference": session.view.config.model_dump(),
        "boxes_sha256": sha256_of(options.boxes) if options.boxes is not None else None,
        "exif_orientation": session.loading.decoding.orientation,
        "tta": session.tta,
        "decision": session.decision_record(),
        "precision": options.inference.precision,
        "images_sha256": _images_digest(images, digests),
    }


def _images_digest(images: Sequence[Path], digests: Sequence[str]) -> str:
    """Names and contents of the test images: another year's set has the same names."""
    digest = hashlib.sha256()
    for image, own in zip(images, digests, strict=True):
        digest.update(f"{image.name} {own}\n".encode())
    return digest.hexdigest()


def _prepare(
    options: SubmitOptions,
    images: Sequence[Path],
    settings: dict[str, Any],
    tags: Mapping[str, str],
    decoding: Decoding,
) -> list[int]:
    """Indices of the images without a valid prediction."""
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / SETTINGS
    present = sorted(options.output.glob("*.npz"))
    before = {"exif_orientation": "upright", "decision": None} | read_json_object(path) if path.is_file() else None
    if present and before != settings and not options.overwrite:
        raise UserError(
            f"{options.output}: holds {len(present)} predictions of another model, other images or other settings; "
            "give another --output, or --overwrite to replace them"
        )
    if options.overwrite:
        for old in present:
            remove_file(old)
    remove_file(options.output / CHECKSUMS)
    write_json(path, settings)

    def is_done(image: Path) -> bool:
        target = options.output / submission_name(image)
        size = prediction_size(image, decoding)
        return target.is_file() and check_prediction(target, size, tag=tags[target.name]) is None

    return [index for index, image in enumerate(images) if not is_done(image)]
