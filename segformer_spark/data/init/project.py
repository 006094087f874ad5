"""`data init`: a folder of images with masks or polygons -> lists, drawn masks, and a configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segformer_spark.config.data_schema import MAX_PIXELS
from segformer_spark.config.schema import RUN_NAME_PATTERN
from segformer_spark.data.class_weights import class_weights
from segformer_spark.data.decode import Decoding
from segformer_spark.data.grouping import group_names
from segformer_spark.data.init.annotation_files import read_annotations
from segformer_spark.data.init.class_table import ClassRow, ClassTable, class_table
from segformer_spark.data.init.config_text import FolderSummary, configuration_text
from segformer_spark.data.init.shapes import Annotations, draw
from segformer_spark.data.init.split import stratified_split
from segformer_spark.data.init.survey import MaskFacts, Survey, survey_masks
from segformer_spark.data.pairing import Pairing, find_pairs, listed, refuse_without_partner
from segformer_spark.data.palette import distinct_colors
from segformer_spark.data.png import write_png
from segformer_spark.data.readers.lists import write_pair_list
from segformer_spark.errors import DataError, UserError
from segformer_spark.files.atomic import write_text
from segformer_spark.files.paths import real_path
from segformer_spark.run.console import logger, progress

_GIVEN_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class InitOptions:
    """What the command line says.

    Attributes:
        folder: of images with masks or polygons; nothing is written there.
        name: of the configuration and its runs.
        output: folder for NAME.yaml and NAME.data/.
        annotations: COCO file, or folder of annotation files; None looks in `folder`.
        class_names: in the order of ids, or colours by frequency; None proposes names.
        group_by: category, drive or a regular expression; None: images are independent.
        exif_orientation: how masks were drawn; None concludes it from sizes.
        skip_unpaired: leave out what has no partner.
        command: for the configuration's header.
        has_weights: whether there are weights of B0 from ADE20K in weights/.
    """

    folder: Path
    name: str
    output: Path = Path()
    annotations: Path | None = None
    class_names: Sequence[str] | None = None
    val_fraction: float = 0.2
    seed: int = 0
    group_by: str | None = None
    exif_orientation: Literal["stored", "upright"] | None = None
    skip_unpaired: bool = False
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    command: str = ""
    has_weights: bool = False

    @property
    def config(self) -> Path:
        return self.output / f"{self.name}.yaml"

    @property
    def files(self) -> Path:
        """Folder of the lists, and of masks made from polygons."""
        return self.output / f"{self.name}.data"

    @property
    def masks(self) -> Path:
        """Folder of masks made from polygons."""
        return self.files / "masks"


def init_project(options: InitOptions) -> FolderSummary:
    """Write the configuration and what it names.

    Raises:
        UserError: something cannot be told from the files; the message asks for it.
    """
    _refuse(options)
    decoding = Decoding(max_pixels=options.max_pixels, pixels_option="--max-pixels")
    pairing, annotations = _pairing(options, decoding)
    mask_root = None if annotations is None else options.masks
    if len(pairing.pairs) < 2:
        raise DataError(f"{options.folder}: {len(pairing.pairs)} images with a mask; a split needs two at least")
    survey = survey_masks(progress(pairing.pairs, total=len(pairing.pairs), label="reading masks"), decoding)
    table = (
        _of_annotations(annotations, options) if annotations else class_table(survey, options.name, options.class_names)
    )
    pixels = [table.pixels(one) for one in survey.masks]
    splits, notes = _splits(pairing, pixels, options)
    orientation = _orientation(survey.masks, options)
    for split, indices in splits.items():
        chosen = [pairing.pairs[index] for index in indices]
        write_pair_list(options.files / f"{split}.txt", chosen, options.folder, mask_root or options.folder)
    summary = FolderSummary(
        name=options.name,
        command=options.command,
        folder=options.folder,
        files=options.files,
        mask_root=mask_root,
        table=table,
        num_images={split: len(indices) for split, indices in splits.items()},
        shares=_shares(pixels),
        images_with=[int(number) for number in (np.asarray(pixels) > 0).sum(0)],
        ignored=sum(table.ignored(one) for one in survey.masks) / sum(sum(one.counts.values()) for one in survey.masks),
        class_weights=class_weights("median_frequency", [pixels[index] for index in splits["train"]]),
        image_size=_typical_size(survey, orientation),
        exif_orientation=orientation,
        max_pixels=options.max_pixels,
        has_weights=options.has_weights,
        notes=[*table.notes, *notes],
    )
    write_text(options.config, configuration_text(summary))
    return summary


def _refuse(options: InitOptions) -> None:
    """Raise UserError for names and places that cannot be written to."""
    if not re.fullmatch(RUN_NAME_PATTERN, options.name) or options.name.startswith((".", "-")):
        raise UserError(
            f"--name {options.name}: up to 64 letters, digits, '.', '_', '-', and no '.' or '-' at the start"
        )
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: there is no such folder of images")
    expanded = [str(path) for path in (options.folder, options.output) if "$" in str(path) or str(path).startswith("~")]
    if expanded:
        raise UserError(
            f"{expanded[0]}: '$' and a '~' at the start are read as variables and home folders in configurations",
            "Rename the folder, or give its path another way, as from a folder above it.",
        )
    root = real_path(options.folder)
    if real_path(options.output) == root or root in real_path(options.output).parents:
        raise UserError(
            f"{real_path(options.output) / options.config.name} would lie in the folder of images, to which nothing is "
            "written",
            "Run this in another folder, or give one with --output.",
        )
    if options.config.exists() and not options.overwrite:
        raise UserError(f"{options.config}: this file exists", "Give another --name, or --overwrite.")


def _pairing(options: InitOptions, decoding: Decoding) -> tuple[Pairing, Annotations | None]:
    """Images and masks; where polygons are given, or there is no mask, masks that are drawn, and those polygons."""
    if options.annotations is not None:
        annotations = read_annotations(options.folder, options.annotations, decoding)
        if annotations is None or not annotations.images:
            raise DataError(f"{options.annotations}: there are no annotations of images of {options.folder} in it")
        return _drawn(annotations, options), annotations
    pairing = find_pairs(options.folder)
    if pairing.pairs:
        _leave_out(pairing, options)
        return pairing, None
    annotations = read_annotations(options.folder, None, decoding)
    if annotations is None:
        raise DataError(
            f"{options.folder}: {len(pairing.without_mask)} images and no mask that belongs to one of them",
            "Where are the masks? Put them into masks/ beside images/, or beside the images as NAME_mask.png, or give "
            "polygons with --annotations.",
        )
    return _drawn(annotations, options), annotations


def _leave_out(pairing: Pairing, options: InitOptions) -> None:
    if not options.skip_unpaired:
        fix = "Add what is missing, or leave these files out with --skip-unpaired."
        refuse_without_partner(pairing, options.folder, fix)
    for kind, paths in (("without a mask", pairing.without_mask), ("without an image", pairing.without_image)):
        if paths:
            logger.warning("%d files %s are left out: %s", len(paths), kind, listed(paths, options.folder))


def _drawn(annotations: Annotations, options: InitOptions) -> Pairing:
    """Masks of polygons, which are written to `options.masks`."""
    pairs, names = [], []
    for one in annotations.images:
        name = str(one.image.relative_to(options.folder).with_suffix(""))
        pairs.append((one.image, options.masks / f"{name}.png"))
        names.append(name)
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise DataError(f"{options.folder}: two images are named {twice[0]} but for the suffix", "Rename one of them.")
    pairing = Pairing(pairs, names, annotations.without)
    _leave_out(pairing, options)
    for one, (_, mask) in progress(zip(annotations.images, pairs, strict=True), total=len(pairs), label="drawing"):
        write_png(mask, draw(one, annotations.categories))
    logger.info("%s: %d masks drawn into %s", annotations.format, len(pairs), options.masks)
    return pairing


def _of_annotations(annotations: Annotations, options: InitOptions) -> ClassTable:
    names = ["background", *annotations.categories]
    if options.class_names is not None:
        raise UserError("--classes: polygons have the names of their classes; leave it out")
    if len(set(names)) != len(names):
        raise UserError(f"{annotations.format}: a class name occurs twice, or is background: {', '.join(names)}")
    colors = distinct_colors(len(names))
    rows = [
        ClassRow(name, color, label, (label,)) for label, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    note = f"masks were drawn from {annotations.format} polygons, smaller areas over larger ones"
    return ClassTable("index", rows, "background", notes=(note,))


def _splits(
    pairing: Pairing, pixels: Sequence[Sequence[int]], options: InitOptions
) -> tuple[dict[str, list[int]], list[str]]:
    """{split: indices}, and what to say about them."""
    given = [_GIVEN_SPLITS.get(name.split("/")[0].lower()) for name in pairing.names]
    if {"train", "val"} <= set(given):
        if None in given:
            outside = pairing.names[given.index(None)]
            raise DataError(
                f"{options.folder}: there are folders train and val, and {outside} lies in neither",
                "Which split is it of? Move it.",
            )
        if options.group_by is not None:
            raise UserError("--group-by: the folders train and val say what the splits are; leave it out")
        splits = {split: [i for i, own in enumerate(given) if own == split] for split in ("train", "val", "test")}
        return {split: own for split, own in splits.items() if own}, ["splits are those of the folders"]
    groups = group_names(pairing.names, options.group_by)
    train, val = stratified_split(pixels, groups, options.val_fraction, options.seed)
    note = f"split at random, stratified by class, seed {options.seed}"
    if options.group_by is not None:
        note += f"; {len(set(groups))} groups by {options.group_by} stay together"
    return {"train": train, "val": val}, [note]


def _orientation(masks: Sequence[MaskFacts], options: InitOptions) -> Literal["stored", "upright"]:
    """How masks go with images that viewers turn.

    Raises:
        DataError: sizes do not tell, or tell different things.
    """
    if options.exif_orientation is not None:
        return options.exif_orientation
    turned = [m for m in masks if m.image_header.orientation not in (1, m.mask_header.orientation)]
    stored = [m for m in turned if m.mask_header.size == m.image_header.size != m.image_header.upright_size]
    upright = [m for m in turned if m.mask_header.size == m.image_header.upright_size != m.image_header.size]
    if turned and ((stored and upright) or not (stored or upright)):
        first = turned[0]
        raise DataError(
            f"{len(turned)} images are turned by an EXIF tag and their masks are not, first {first.image}; mask sizes "
            + ("contradict each other" if stored else "do not tell how they were drawn"),
            "Were the masks drawn over the images as viewers show them? Give --exif-orientation upright; over the "
            "pixels as the files store them: --exif-orientation stored.",
        )
    return "upright" if upright else "stored"


def _shares(pixels: Sequence[Sequence[int]]) -> list[float]:
    total = np.asarray(pixels, np.float64).sum(0)
    return [float(share) for share in total / max(1.0, total.sum())]


def _typical_size(survey: Survey, orientation: str) -> tuple[int, int]:
    """Median (height, width) as the model is shown images."""
    headers = [one.image_header for one in survey.masks]
    sizes = np.asarray([h.upright_size if orientation == "upright" else h.size for h in headers])
    height, width = np.median(sizes, axis=0)
    return int(height), int(width)
