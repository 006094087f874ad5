"""Fields of `data`, `augmentation` and `inference`: what the model is shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from segformer_spark.config.image_size import ImageSize, Size, height_width
from segformer_spark.config.section import Section, field

MAX_PIXELS = 178_956_970
"""Pillow's limit beyond which it refuses an image as a decompression bomb."""


class ClassConfig(Section):
    """One row of the class table of `dataset: folder`."""

    name: str = Field(min_length=1)
    color: tuple[int, int, int] | None = Field(default=None, strict=False)
    id: int | None = Field(default=None, ge=0, le=255)

    @field_validator("color")
    @classmethod
    def _color_in_range(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(0 <= channel <= 255 for channel in value):
            raise ValueError("a colour is [red, green, blue], each from 0 to 255")
        return value


class FolderConfig(Section):
    """What `dataset: folder` needs to know; other readers know it themselves."""

    classes: list[ClassConfig] | None = field(
        None,
        "Class table: rows {name, color: [r, g, b], id}; the id is the label in index masks, whose classes need no "
        "color.",
        max_length=255,
    )
    masks: Literal["color", "index"] = field("color", "Whether masks hold colours or class ids.")
    background: str | None = field(None, "Class left out of mIoU without background.")
    ignore_id: int | None = field(255, "Label of index masks that neither trains nor counts.", ge=0, le=255)
    ignore_color: tuple[int, int, int] | None = field(
        None, "Colour of colour masks that neither trains nor counts.", strict=False
    )
    lists: str | None = field(
        None,
        "Folder of lists <split>.txt with an image and its mask per line, separated by a tab, relative to data.root "
        "and mask_root; null: images/<split>/ and masks/<split>/ below data.root.",
        path=True,
    )
    mask_root: str | None = field(None, "Folder that the masks of lists are relative to; null: data.root.", path=True)
    val_fraction: float | None = field(
        None,
        "Share of the images below data.root that is the split val, the others are train; pairs are found as `data "
        "init` finds them. null: lists, or a folder per split.",
        gt=0,
        lt=1,
    )

    @property
    def ids(self) -> tuple[int, ...]:
        """The label of each class in index masks: its id, or its position in the table."""
        return tuple(position if row.id is None else row.id for position, row in enumerate(self.classes or []))

    @model_validator(mode="after")
    def _table_makes_sense(self) -> FolderConfig:
        rows = self.classes or []
        colors: list[object] = [row.color for row in rows if row.color is not None]
        columns: dict[str, list[object]] = {
            "names": [row.name for row in rows],
            "colours": [*colors, self.ignore_color] if self.ignore_color is not None else colors,
            "ids": list(self.ids),
        }
        for what, values in columns.items():
            if len(set(values)) != len(values):
                raise ValueError(f"the class table repeats {what}: {values}")
        if self.masks == "index" and self.ignore_id in self.ids:
            raise ValueError(f"ignore_id {self.ignore_id} is also the id of a class; a row without id has its position")
        if rows and self.background is not None and self.background not in [row.name for row in rows]:
            raise ValueError(f"background {self.background!r} is not a name of the class table")
        if self.lists is not None and self.val_fraction is not None:
            raise ValueError("lists and val_fraction both say what the splits are; give one of them")
        if self.mask_root is not None and self.lists is None:
            raise ValueError("mask_root goes with lists")
        return self


class CrossValidationConfig(Section):
    """One fold of `data.train_split` in the place of `data.val_split`."""

    fold: int | None = field(
        None,
        "The fold that is validated on in the place of data.val_split, from 0; the others are trained on. null: no "
        "cross-validation.",
        ge=0,
    )
    num_folds: int = field(5, "Folds that data.train_split is cut into.", ge=2, le=1000)
    group_by: str | None = field(
        None,
        "What stays together in one fold: category, drive, or a regular expression on the images' names. null: every "
        "category is spread over all folds, a drive is cut into stretches of neighbouring frames.",
    )

    @model_validator(mode="after")
    def _fold_exists(self) -> CrossValidationConfig:
        if self.fold is not None and self.fold >= self.num_folds:
            raise ValueError(f"fold {self.fold} of {self.num_folds}: folds are numbered 0 to {self.num_folds - 1}")
        return self


class DataConfig(Section):
    dataset: str = field(
        "spark",
        "The data set's reader: spark, camvid, ade20k, cityscapes, voc, pets, pets_without_border, street_hazards or "
        "folder (data/registry.py).",
    )
    root: str = field("data/spark", "Folder of the data set.", env="DATA_ROOT", resume_safe=True, path=True)
    image_size: ImageSize = field(
        512,
        "The model's input in training: a side in pixels, or [height, width], also written 720x1280.",
        env="IMAGE_SIZE",
    )
    train_split: str = field("train", "Split that is trained on.")
    val_split: str = field("val", "Split that is validated on.")
    val_subset: int | None = field(
        None, "Validate on this many images during training, always the same; null for all.", ge=1
    )
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    num_workers: int = field(4, "Loader processes per rank.", env="NUM_WORKERS", ge=0, le=64, resume_safe=True)
    manifest: str = field(
        "{root}/manifest.json", "Manifest that `data check` writes; {root} is data.root.", resume_safe=True, path=True
    )
    cache: str | None = field(
        None,
        "Cache of the training split that `data cache` made; null reads the files.",
        env="DATA_CACHE",
        resume_safe=True,
        path=True,
    )
    reduced_decode: bool = field(
        False,
        "Decode the JPEG images of the training split at 1/2, 1/4 or 1/8 of their size where image_size allows it, in "
        "about half the time; pixels differ a little (docs/data.md).",
    )
    exif_orientation: Literal["stored", "upright"] | None = field(
        None,
        "Pixels of images and masks as the files store them, or turned by the EXIF tag of each; null: as stored, and a "
        "turned image whose mask has another tag or none is an error.",
        absent="upright",
    )
    max_pixels: int = field(
        MAX_PIXELS, "Images and masks of more pixels are refused before they are decoded.", ge=1, resume_safe=True
    )
    nearest_color: bool = field(
        False,
        "Take the nearest class colour where more than a thousandth of a colour mask's pixels lie between the colours, "
        "as anti-aliased edges do; otherwise such a mask is refused.",
        absent=True,
    )
    palette_masks: Literal["check", "index", "color"] = field(
        "check",
        "Palette masks of data sets with fixed colours (voc, folder): check: by index, refused where the palette has "
        "other colours; index: by index; color: by the palette's colours.",
        absent="index",
    )
    flip_pairs: list[Annotated[tuple[str, str], Field(strict=False)]] | None = field(
        None,
        "Pairs of classes that a left-right flip exchanges, in augmentation and test-time augmentation: "
        "[[left, right], ...]; [] says that there are none.",
        absent=[],
    )
    folder: FolderConfig = FolderConfig()

    @property
    def whole(self) -> DataConfig:
        """The same without a fold: splits as they lie on disk."""
        return self.model_copy(update={"cross_validation": CrossValidationConfig()})

    def describe_split(self, split: str) -> str:
        """A split for people: val, or that it is a fold."""
        fold = self.cross_validation.fold
        if fold is None or split not in (self.train_split, self.val_split):
            return split
        of = f"fold {fold} of {self.cross_validation.num_folds} of {self.train_split}"
        return f"{split} ({of})" if split == self.val_split else f"{split} (without {of})"

    @property
    def input_size(self) -> Size:
        """`image_size` as (height, width)."""
        return height_width(self.image_size)

    @model_validator(mode="after")
    def _fold_replaces_another_split(self) -> DataConfig:
        if self.cross_validation.fold is not None and self.train_split == self.val_split:
            raise ValueError(f"cross_validation: train_split and val_split are both {self.train_split!r}")
        return self


class CropConfig(Section):
    """What part of the image training sees, before all other augmentation."""

    mode: Literal["none", "random", "fixed", "variable", "original", "box"] = field(
        "none",
        "none: the whole image, resized; random: a crop of image_size; fixed: resized by scale, then such a crop, "
        "padded; variable: a crop of scale x image_size, resized; original: as an earlier study did it (formerly "
        "seed); box: around the object, with the sides' ratio of image_size.",
    )
    scale: tuple[float, float] = field(
        (0.5, 2.0), "Scale drawn from this range, for fixed, variable, original.", strict=False
    )
    base: Literal["native", "short_side"] = field(
        "native", "What fixed scales: the image as it is, or resized until it just covers image_size."
    )
    max_class_share: float | None = field(
        None, "Draw random crops anew (10 times) while one class takes more than this share.", gt=0, lt=1
    )
    share: float = field(1.0, "Share of the samples that are cropped; the others are whole, for box.", ge=0, le=1)
    margin: float = field(
        0.25, "Room around the box on each side, relative to the window without it (its longer side).", ge=0, le=4
    )
    jitter: float = field(0.2, "Random shift and change of size of the box crop, relative to its side.", ge=0, lt=1)

    @field_validator("mode", mode="before")
    @classmethod
    def _former_name(cls, value: object) -> object:
        return "original" if value == "seed" else value

    @model_validator(mode="after")
    def _range_rises(self) -> CropConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be [low, high] with 0 < low <= high")
        if self.max_class_share is not None and self.mode in ("none", "box"):
            raise ValueError(f"max_class_share goes with random crops, crop.mode is {self.mode}")
        if self.share != 1 and self.mode != "box":
            raise ValueError(f"share goes with mode box, crop.mode is {self.mode}")
        return self


class AugmentationConfig(Section):
    """Each switch is a probability; 0 leaves the transform out."""

    horizontal_flip: float = field(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vertical_flip: float = field(0.5, "Probability of an up-down flip.", ge=0, le=1)
    affine: float = field(0.5, "Probability of one joint rotation, scale and shift.", ge=0, le=1)
    rotation_degrees: float = field(30.0, "Rotation drawn from +- this.", ge=0, le=180)
    scale: tuple[float, float] = field((0.8, 1.2), "Scale factor drawn from this range.", strict=False)
    shift: float = field(0.1, "Shift drawn from +- this share of the side.", ge=0, le=0.5)
    color: float = field(0.5, "Probability of a change of brightness, contrast, saturation and hue.", ge=0, le=1)
    brightness: float = field(0.2, "Brightness factor drawn from 1 +- this.", ge=0, lt=1)
    contrast: float = field(0.2, "Contrast factor drawn from 1 +- this.", ge=0, lt=1)
    saturation: float = field(0.2, "Saturation factor drawn from 1 +- this.", ge=0, lt=1)
    hue: float = field(0.02, "Hue rotation drawn from +- this share of the circle.", ge=0, le=0.5)
    blur: float = field(0.1, "Probability of Gaussian blur.", ge=0, le=1)
    blur_sigma: tuple[float, float] = field((0.3, 1.5), "Standard deviation of the blur in pixels.", strict=False)
    photometric: float = field(
        0.0,
        "Probability of the photometric distortion of the SegFormer paper's recipe (SSD, Liu et al. 2016).",
        ge=0,
        le=1,
    )
    coarse_dropout: float = field(0.0, "Probability of blanking rectangles (DeVries and Taylor 2017).", ge=0, le=1)
    coarse_dropout_holes: int = field(8, "Largest number of rectangles.", ge=1, le=64)
    coarse_dropout_size: float = field(0.15, "Largest side of a rectangle relative to the image.", ge=0.02, le=0.9)
    mosaic: float = field(0.0, "Probability of joining four images into one (Bochkovskiy et al. 2020).", ge=0, le=1)
    crop: CropConfig = CropConfig()

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentationConfig:
        for name in ("scale", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high")
        return self


class InferenceConfig(Section):
    """How validation, evaluation and submission show an image to the model. Exported with it."""

    resize: Literal["image_size", "short_side", "native"] = field(
        "image_size",
        "Whole images are resized to image_size, or by one factor until their short side is image_size's, or stay as "
        "they are. Formerly image_size was square.",
    )
    window: int | None = field(None, "Side of a sliding window over the image; null for one pass.", ge=32, le=8192)
    overlap: float = field(1 / 3, "Share of the window that neighbours have in common.", ge=0, lt=1)
    window_weights: Literal["mean", "gaussian"] = field(
        "mean",
        "How the logits of overlapping windows are joined: their mean, or a mean in which the middle of a window "
        "counts more than its border.",
    )
    crops: Literal["none", "box", "two_pass"] = field(
        "none",
        "box: predict what lies around the data set's box, the rest is background; two_pass: around what a first pass "
        "over the whole image finds.",
    )
    crop_margin: float = field(
        0.25, "Room around the box on each side, relative to the window without it (its longer side).", ge=0, le=4
    )

    @field_validator("resize", mode="before")
    @classmethod
    def _former_name(cls, value: object) -> object:
        return "image_size" if value == "square" else value

    @model_validator(mode="after")
    def _one_way(self) -> InferenceConfig:
        if self.crops != "none" and (self.window is not None or self.resize != "image_size"):
            raise ValueError(
                "inference.crops goes with resize: image_size and without a window: a crop is resized as a whole"
            )
        return self
