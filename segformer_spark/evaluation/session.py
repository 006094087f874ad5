"""A finished model, opened for prediction: the one way in which verbs ask a run, a model folder or a Hub folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
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
from segformer_spark.distributed.process_group import Group, SingleProcess
from segformer_spark.errors import UserError
from segformer_spark.evaluation.augmented import passes_of
from segformer_spark.evaluation.decision import ARGMAX, Decision
from segformer_spark.evaluation.ensemble import check_members, read_ensemble, write_ensemble
from segformer_spark.evaluation.predict import Predictor
from segformer_spark.evaluation.saved_decision import SavedDecision, decision_path, read_decision
from segformer_spark.files.digest import sha256_of
from segformer_spark.kernels.check import check_kernels
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.run.console import logger
from segformer_spark.run.directory import ENSEMBLE, RunDirectory, locate_model


@dataclass(frozen=True)
class InferenceSettings:
    """How a finished model is asked.

    Attributes:
        precision: fp32, tf32, bf16 or fp16 (autocast).
        batch_size: images per rank at a time.
        tta: test-time augmentation, as `augmented.passes_of` reads it; None: that of a saved decision, else none.
        crops: none, box or two_pass; None as the model was exported.
        view: fields of `inference` that replace those that the model was exported with.
        num_workers: loader processes per rank.
        exif_orientation: of files without a data set, stored or upright; None as the model was trained.
        max_pixels: of files without a data set; larger ones are refused.
        keep_images: items of files carry their native image.
        decision: how class ids follow from logits.
        use_saved: take decision, augmentation and view from the model's decision.json, where there is one.
    """

    precision: str = "fp32"
    batch_size: int = 8
    tta: str | None = None
    crops: str | None = None
    view: Mapping[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    exif_orientation: Literal["stored", "upright"] | None = None
    max_pixels: int = MAX_PIXELS
    keep_images: bool = False
    decision: Decision = ARGMAX
    use_saved: bool = False


@dataclass(frozen=True)
class OpenedModel:
    """An exported model's folder or ONNX file, the run directory it lies in (None elsewhere), the model, its card."""

    folder: Path
    run: Path | None
    model: SegmentationModel
    card: ModelCard

    @property
    def weights_file(self) -> Path:
        """The file whose digest stands for the model."""
        return self.folder if self.folder.is_file() else self.folder / "model.safetensors"


class Session:
    """A model in evaluation mode on this rank's device, or several whose mean probability counts.

    Attributes:
        models: what was opened; with several, the attributes below are those of the first.
        settings: how they are asked.
        tta: test-time augmentation.
        folder: the exported model's folder, or ONNX file.
        run: the run directory that it lies in; None elsewhere.
        card: what its export says about it.
        view: what it is shown of an image.
        dataset: the split that it is asked about; None without one.
    """

    def __init__(
        self,
        models: Sequence[OpenedModel],
        settings: InferenceSettings,
        group: Group,
        dataset: SegmentationDataset | None,
    ) -> None:
        first = models[0]
        settings = replace(settings, tta=settings.tta or "none")
        self.models, self.group, self.dataset, self.settings = list(models), group, dataset, settings
        self.tta = settings.tta or "none"
        self.folder, self.run, self.card = first.folder, first.run, first.card
        crops = {"crops": settings.crops} if settings.crops else {}
        views = [one.card.view(**{**settings.view, **crops}) for one in models]
        self.view: InferenceView = views[0]
        card = first.card
        _refuse_different(models, views)
        if dataset is not None:
            check_view(self.view.config, dataset)
        orientation = settings.exif_orientation or card.exif_orientation
        decoding = Decoding(orientation, settings.max_pixels, pixels_option="--max-pixels")
        self.loading = EvalLoading(
            *(self.view, settings.batch_size, settings.num_workers, decoding),
            keep_image=settings.keep_images,
            members=tuple(views[1:]),
        )
        flipped: tuple[int, ...] = ()
        if any(one.mirrors for one in passes_of(self.tta)):
            refuse_unpaired_sides(card.class_names, card.flip_pairs, f"--tta {self.tta}", "leave --tta out")
            flipped = tuple(flipped_ids(card.class_names, card.flip_pairs or ()))
            for left, right in sided_names(card.class_names) if not card.flip_pairs else ():
                logger.warning("--tta %s: %s and %s are not exchanged (data.flip_pairs)", self.tta, left, right)
        set_float32_products(settings.precision, group.device)
        check_kernels(group.device, group.gather)
        predictors = [
            Predictor(
                *(one.model.to(group.device), group.device, view, settings.precision, self.tta, card.background),
                flipped=flipped,
                decision=settings.decision,
            )
            for one, view in zip(models, views, strict=True)
        ]
        self.predictor = replace(predictors[0], members=tuple(predictors[1:]))

    @classmethod
    def open(
        cls,
        path: Path | Sequence[Path],
        settings: InferenceSettings,
        group: Group,
        data: DataConfig | None = None,
        split: str | None = None,
    ) -> Session:
        """Open a model, and the split of a data set that it will be asked about. Collective.

        Args:
            path: a run directory (its best/, else final/), a folder or ONNX file exported by this
                package, or a published SegFormer; several are an ensemble, as is a folder with an ensemble.json.
            split: of `data`; None takes its validation split.

        Raises:
            UserError: there is no such model or data, or they do not go together.
        """
        models = [model for one in ([path] if isinstance(path, Path) else path) for model in _opened(one, group)]
        dataset = None
        if data is not None:
            group.on_main(lambda: _refuse_trained_on(models, data, split or data.val_split))
        if data is not None and data.flip_pairs is not None:
            pairs = tuple(data.flip_pairs)
            models = [replace(one, card=replace(one.card, flip_pairs=pairs)) for one in models]
        if data is not None:
            dataset = group.on_main(lambda: open_dataset(data, split or data.val_split))
            if tuple(dataset.classes.names) != models[0].card.class_names:
                raise UserError(
                    f"{models[0].folder} knows the classes {', '.join(models[0].card.class_names)}, the data set "
                    f"{data.dataset} has {', '.join(dataset.classes.names)}"
                )
        if settings.use_saved:
            saved = group.on_main(lambda: _saved(models))
            settings = settings if saved is None else _with_saved(settings, *saved, models[0].card.class_names)
        return cls(models, settings, group, dataset)

    @property
    def weights_file(self) -> Path:
        """The file whose digest stands for the (first) model."""
        return self.models[0].weights_file

    def weights_digest(self) -> str:
        """sha256 of the model's weights; of several models, of their digests one after another."""
        digests = [sha256_of(one.weights_file) for one in self.models]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def refuse_several(self, what: str) -> None:
        """Raise UserError for an ensemble where `what` is of one model."""
        if len(self.models) > 1:
            raise UserError(f"{what} is of one model, and these are {len(self.models)}", "Give one of them.")

    def asked(self, settings: InferenceSettings) -> Session:
        """The same models and data set, asked in another way.

        Raises:
            UserError: the models cannot be asked like this.
        """
        return Session(self.models, settings, self.group, self.dataset)

    def decision_record(self) -> dict[str, Any] | None:
        """The decision for JSON; None for argmax, as records of earlier versions have it."""
        decision = self.settings.decision
        return None if decision == ARGMAX else asdict(decision)

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


def _opened(path: Path, group: Group) -> list[OpenedModel]:
    """The model at `path`, or the members of an ensemble."""
    found, run = locate_model(path)
    if found.name != ENSEMBLE:
        return [OpenedModel(found, run, *(load_onnx(found) if found.is_file() else load_model(found)))]
    members = group.on_main(lambda: read_ensemble(found))
    models = [model for member, _ in members for model in _opened(member, group)]
    weights = {one.weights_file: sha256 for one, (_, sha256) in zip(models, members, strict=True)}
    group.on_main(lambda: check_members(found, weights))
    return models


def make_ensemble(paths: Sequence[Path], folder: Path) -> None:
    """Write a folder that stands for the models at these paths (`evaluation.ensemble`).

    Raises:
        UserError: one cannot be opened, they do not go together, none lies in a run, or the folder exists.
    """
    session = Session.open(paths, InferenceSettings(), SingleProcess.on(torch.device("cpu")))
    run = next((one.run for one in session.models if one.run is not None), None)
    if run is None:
        raise UserError("none of the models lies in a run, whose configuration names the data set")
    write_ensemble(folder, [(one.folder, one.weights_file) for one in session.models], run)


def _saved(models: Sequence[OpenedModel]) -> tuple[Path, SavedDecision] | None:
    """The decision that was saved for this very model; None for several models, without one, or for other weights."""
    first = models[0]
    path = decision_path(first.folder, first.run)
    if not path.is_file():
        return None
    if len(models) > 1:
        logger.info("%s is of one model: not used for several", path)
        return None
    saved = read_decision(path)
    if saved.model_sha256 != sha256_of(first.weights_file):
        logger.warning("%s was made for another model than %s: not used", path, first.folder)
        return None
    logger.info("decision: %s (%s)", saved.summary, path)
    return path, saved


def _with_saved(
    settings: InferenceSettings, path: Path, saved: SavedDecision, class_names: Sequence[str]
) -> InferenceSettings:
    """What was saved, where nothing else was asked for."""
    return replace(
        settings,
        decision=saved.decision(class_names, path),
        tta=settings.tta or saved.tta,
        view={**saved.inference, **settings.view},
    )


def _refuse_trained_on(models: Sequence[OpenedModel], data: DataConfig, split: str) -> None:
    """Raise UserError for a fold that a model was trained on."""
    fold = data.cross_validation
    if fold.fold is None or split != data.val_split:
        return
    for one in models:
        if one.run is None:
            logger.warning("%s lies in no run: nobody knows whether it was trained on fold %d", one.folder, fold.fold)
            continue
        own = RunDirectory(one.run).load_config().config.data
        if own.dataset == data.dataset and own.cross_validation != fold:
            raise UserError(
                f"{one.folder} was trained on images of {data.describe_split(split)}",
                "Evaluate it on its own fold, or on the split of files: --set data.cross_validation.fold=null.",
            )


def _refuse_different(models: Sequence[OpenedModel], views: Sequence[InferenceView]) -> None:
    """Raise UserError for models whose probabilities have no mean."""
    first = models[0]
    for one, view in zip(models[1:], views[1:], strict=True):
        if one.card.class_names != first.card.class_names:
            raise UserError(
                f"{one.folder} knows the classes {', '.join(one.card.class_names)}, {first.folder} knows "
                f"{', '.join(first.card.class_names)}: an ensemble needs the same classes in one order"
            )
        crop = {view.config.crops, views[0].config.crops} != {"none"}
        if crop and (view.size, view.config) != (views[0].size, views[0].config):
            raise UserError(
                f"{one.folder} and {first.folder} are shown different crops; an ensemble needs equal ones, or none"
            )
