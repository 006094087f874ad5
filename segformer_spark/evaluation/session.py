"""A finished model, opened for prediction: the one way in which verbs ask a run, a model folder or a Hub folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from segformer_spark.checkpoint.export import ModelCard, load_model
from segformer_spark.checkpoint.onnx_model import load_onnx
from segformer_spark.config.data_schema import MAX_PIXELS, DataConfig
from segformer_spark.data.dataset import Box, SegmentationDataset
from segformer_spark.data.decode import Decoding
from segformer_spark.data.flip_pairs import flipped_ids, refuse_unpaired_sides, sided_names
from segformer_spark.data.inference_view import InferenceView, check_view
from segformer_spark.data.loader import EvalItem, EvalLoading, eval_loader, file_loader
from segformer_spark.data.registry import open_dataset
from segformer_spark.distributed.devices import set_float32_products
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError
from segformer_spark.evaluation.predict import TTA_FLIPS, Predictor
from segformer_spark.kernels.check import check_kernels
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.run.console import logger
from segformer_spark.run.directory import locate_model


@dataclass(frozen=True)
class InferenceSettings:
    """How a finished model is asked.

    Attributes:
        precision: fp32, tf32, bf16 or fp16 (autocast).
        batch_size: images per rank at a time.
        tta: test-time augmentation, a key of TTA_FLIPS.
        crops: none, box or two_pass; None as the model was exported.
        view: fields of `inference` that replace those that the model was exported with.
        num_workers: loader processes per rank.
        exif_orientation: of files without a data set, stored or upright; None as the model was trained.
        max_pixels: of files without a data set; larger ones are refused.
        keep_images: items of files carry their native image.
    """

    precision: str = "fp32"
    batch_size: int = 8
    tta: str = "none"
    crops: str | None = None
    view: Mapping[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    exif_orientation: Literal["stored", "upright"] | None = None
    max_pixels: int = MAX_PIXELS
    keep_images: bool = False


class Session:
    """A model in evaluation mode on this rank's device.

    Attributes:
        folder: the exported model's folder, or ONNX file.
        run: the run directory that it lies in; None elsewhere.
        card: what its export says about it.
        view: what it is shown of an image.
        dataset: the split that it is asked about; None without one.
    """

    def __init__(
        self,
        folder: Path,
        run: Path | None,
        model: SegmentationModel,
        card: ModelCard,
        settings: InferenceSettings,
        group: Group,
        dataset: SegmentationDataset | None,
    ) -> None:
        self.folder, self.run, self.card, self.group, self.dataset = folder, run, card, group, dataset
        crops = {"crops": settings.crops} if settings.crops else {}
        self.view: InferenceView = card.view(**{**settings.view, **crops})
        if dataset is not None:
            check_view(self.view.config, dataset)
        orientation = settings.exif_orientation or card.exif_orientation
        decoding = Decoding(orientation, settings.max_pixels, pixels_option="--max-pixels")
        self.loading = EvalLoading(
            *(self.view, settings.batch_size, settings.num_workers, decoding), keep_image=settings.keep_images
        )
        flipped: tuple[int, ...] = ()
        if any(-1 in axes for axes in TTA_FLIPS[settings.tta]):
            refuse_unpaired_sides(card.class_names, card.flip_pairs, f"--tta {settings.tta}", "leave --tta out")
            flipped = tuple(flipped_ids(card.class_names, card.flip_pairs or ()))
            for first, second in sided_names(card.class_names) if not card.flip_pairs else ():
                logger.warning("--tta %s: %s and %s are not exchanged (data.flip_pairs)", settings.tta, first, second)
        set_float32_products(settings.precision, group.device)
        check_kernels(group.device, group.gather)
        self.predictor = Predictor(
            *(model.to(group.device), group.device, self.view, settings.precision, settings.tta, card.background),
            flipped=flipped,
        )

    @classmethod
    def open(
        cls,
        path: Path,
        settings: InferenceSettings,
        group: Group,
        data: DataConfig | None = None,
        split: str | None = None,
    ) -> Session:
        """Open a model, and the split of a data set that it will be asked about. Collective.

        Args:
            path: a run directory (its best/, else final/), a folder or ONNX file exported by this
                package, or a published SegFormer.
            split: of `data`; None takes its validation split.

        Raises:
            UserError: there is no such model or data, or they do not go together.
        """
        folder, run, model, card = _opened(path)
        dataset = None
        if data is not None and data.flip_pairs is not None:
            card = replace(card, flip_pairs=tuple(data.flip_pairs))
        if data is not None:
            dataset = group.on_main(lambda: open_dataset(data, split or data.val_split))
            if tuple(dataset.classes.names) != card.class_names:
                raise UserError(
                    f"{folder} knows the classes {', '.join(card.class_names)}, the data set {data.dataset} has "
                    f"{', '.join(dataset.classes.names)}"
                )
        return cls(folder, run, model, card, settings, group, dataset)

    @property
    def weights_file(self) -> Path:
        """The file whose digest stands for the model."""
        return self.folder if self.folder.is_file() else self.folder / "model.safetensors"

    @property
    def model(self) -> SegmentationModel:
        return self.predictor.model

    def labelled(self) -> SegmentationDataset:
        """The data set that the session was opened with."""
        assert self.dataset is not None, "this session was opened without a data set"
        return self.dataset

    def items(self, indices: Sequence[int]) -> Iterator[list[EvalItem]]:
        """Batches of the data set's images at these indices."""
        return eval_loader(self.labelled(), indices, self.loading)

    def file_items(
        self, files: Sequence[Path], indices: Sequence[int], boxes: Mapping[str, Box] | None = None
    ) -> Iterator[list[EvalItem]]:
        """Batches of unlabelled image files; `boxes` by file name, for crops around boxes."""
        return file_loader(files, indices, self.loading, boxes)

    def predictions(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Class ids, uint8 (H, W) at native size (`Predictor.predict`)."""
        return self.predictor.predict(items)

    def probabilities(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Class probabilities, fp32 (C, H, W) at native size (`Predictor.probabilities`)."""
        return self.predictor.probabilities(items)

    def logits(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Logits, fp32 (C, h, w) on the model's own grid (`Predictor.logits`)."""
        return self.predictor.logits(items)

    def features(
        self, items: Iterable[list[EvalItem]], names: Sequence[str]
    ) -> Iterator[tuple[EvalItem, dict[str, Tensor]]]:
        """Named maps of encoder and decoder, fp32 (D, h, w) (`Predictor.features`)."""
        return self.predictor.features(items, names)


def _opened(path: Path) -> tuple[Path, Path | None, SegmentationModel, ModelCard]:
    """The model's folder or file, the run that it lies in, the model and its card."""
    found, run = locate_model(path)
    return found, run, *(load_onnx(found) if found.is_file() else load_model(found))
