"""The Python interface (docs/python.md): a finished model, and training and evaluation as on the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer_spark.config.image_size import Size
from segformer_spark.config.load import ResolvedConfig, load_config, run_path, validate
from segformer_spark.config.schema import Config
from segformer_spark.config.stored import load_stored_config
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.data.decode import decode_rgb, open_image
from segformer_spark.data.loader import EvalItem, eval_item
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.overlay import color_mask, overlay
from segformer_spark.distributed.devices import choose_device
from segformer_spark.distributed.process_group import SingleProcess
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.prediction.results import Results, Row
from segformer_spark.run.directory import RunDirectory, locate_model

ImageLike = str | Path | PIL.Image.Image | NDArray[Any] | Tensor
"""A file, a PIL image, uint8 array (H, W, 3) or (H, W), or tensor (3, H, W) of uint8 or of floats from 0 to 1."""

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Prediction:
    """What a model sees in one image.

    Attributes:
        ids: class ids, uint8 (H, W), at the image's own size.
        probabilities: float32 (C, H, W), or None where they were not asked for; they sum to 1 over the classes.
        confidence: mean over the pixels of the probability of their class.
        names: names of the class ids 0, 1, ...
        colors: their RGB colours.
        image: the pixels that were predicted, uint8 (H, W, 3).
        orientation: EXIF orientation by which viewers turn these pixels; 1 for none.
        source: the file, or None.
    """

    ids: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    confidence: float
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image: NDArray[np.uint8] = field(repr=False)
    orientation: int = 1
    source: Path | None = None
    background: int | None = field(default=None, repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the pixels of each class."""
        counts = np.bincount(self.ids.ravel(), minlength=len(self.names)) / max(1, self.ids.size)
        return {name: float(share) for name, share in zip(self.names, counts, strict=True)}

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Where a class is, bool (H, W).

        Raises:
            KeyError: there is no such class.
        """
        if name not in self.names:
            raise KeyError(f"{name!r}: the classes are {', '.join(self.names)}")
        found: NDArray[np.bool_] = self.ids == self.names.index(name)
        return found

    def overlay(self, alpha: float = 0.5) -> PIL.Image.Image:
        """The image with its classes laid over it, upright; the background stays as it is."""
        shown = overlay(self.image, self.ids, self._classes, alpha)
        return PIL.Image.fromarray(turn_upright(shown, self.orientation))

    def color(self) -> PIL.Image.Image:
        """The classes in their colours, upright."""
        return PIL.Image.fromarray(turn_upright(color_mask(self.ids, self._classes), self.orientation))

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write ids/NAME.png, color/NAME.png and overlay/NAME.png as `segformer-spark predict` does.

        Args:
            name: default: that of the file.

        Returns:
            The file of class ids.

        Raises:
            UserError: an image without a file needs a name, or the files cannot be written.
        """
        if name is None and self.source is None:
            raise UserError("this image came from no file: give save() a name")
        chosen = name if name is not None else Path(str(self.source)).stem
        results = Results(Path(folder), ("ids", "color", "overlay"), self._classes)
        row = Row.of(self.ids, self.confidence, len(self.names))
        results.write(chosen, self.ids, row, image=self.image, probabilities=None, orientation=self.orientation)
        return results.path("ids", chosen)

    @property
    def _classes(self) -> ClassInfo:
        return ClassInfo(self.names, self.colors, self.background)


class Model:
    """A finished model; `load` opens one."""

    def __init__(self, session: Session, batch_size: int) -> None:
        self._session, self._batch_size = session, batch_size

    def __repr__(self) -> str:
        return f"<Model {self._session.card.run}: {', '.join(self.names)} on {self.device}>"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the class ids 0, 1, ..."""
        return self._session.card.class_names

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of each class."""
        return self._session.card.colors

    @property
    def image_size(self) -> Size:
        """(height, width) of the model's input in training."""
        return self._session.card.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._session.group.device

    @property
    def module(self) -> torch.nn.Module:
        """The network: normalised images (B, 3, H, W) in, logits out."""
        return self._session.model

    @overload
    def predict(self, images: str | Path | PIL.Image.Image, *, probabilities: bool = True) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike] | NDArray[Any] | Tensor, *, probabilities: bool = True
    ) -> Prediction | list[Prediction]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, probabilities: bool = True
    ) -> Prediction | list[Prediction]:
        """Predict an image, or several.

        Args:
            images: one image, or a list of images of any sizes; an array (B, H, W, 3) and a tensor (B, 3, H, W) are
                lists, too.
            probabilities: keep them, which takes 4 bytes per class and pixel.

        Returns:
            A prediction for one image, a list of them for several.

        Raises:
            UserError: a file that cannot be read, or an array of another shape or type.
        """
        single, several = _listed(images)
        opened = [self._opened(image) for image in several]
        found = list(self._predicted(opened, probabilities=probabilities))
        return found[0] if single else found

    def _opened(self, image: ImageLike) -> _Opened:
        if isinstance(image, str | Path):
            decoding = self._session.loading.decoding
            file = open_image(Path(image), decoding)
            return _Opened(decode_rgb(file, decoding), decoding.shown_orientation(file.header), Path(image))
        return _Opened(_pixels(image))

    def _predicted(self, opened: Sequence[_Opened], *, probabilities: bool) -> Iterator[Prediction]:
        session, view = self._session, self._session.view
        if view.config.crops == "box":
            raise ConfigError("this model is shown crops around labelled boxes; load it with crops='two_pass'")
        items = [eval_item(index, one.pixels, None, None, view) for index, one in enumerate(opened)]
        batches: Iterator[list[EvalItem]] = (
            items[first : first + self._batch_size] for first in range(0, len(items), self._batch_size)
        )
        for item, scored in session.predictor.scored(batches, "float32" if probabilities else None):
            one, kept = opened[item.index], scored.probabilities
            yield Prediction(
                ids=scored.ids.cpu().numpy(),
                probabilities=None if kept is None else kept.cpu().numpy(),
                confidence=scored.confidence,
                names=self.names,
                colors=self.colors,
                image=one.pixels,
                orientation=one.orientation,
                source=one.source,
                background=session.card.background,
            )


@dataclass(frozen=True)
class _Opened:
    """Pixels of an image, uint8 (H, W, 3)."""

    pixels: NDArray[np.uint8]
    orientation: int = 1
    source: Path | None = None


def _listed(images: Any) -> tuple[bool, list[ImageLike]]:
    """Whether it is a single image, and the images."""
    if isinstance(images, np.ndarray | Tensor):
        return (False, list(images)) if images.ndim == 4 else (True, [images])
    if isinstance(images, str | Path | PIL.Image.Image):
        return True, [images]
    return False, list(images)


def _pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of a PIL image, an array or a tensor.

    Raises:
        UserError: another shape or type.
    """
    if isinstance(image, PIL.Image.Image):
        return np.ascontiguousarray(np.asarray(image.convert("RGB")))
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        if values.ndim != 3 or len(values) != 3:
            raise UserError(f"a tensor of shape {tuple(values.shape)}: (3, H, W) or (B, 3, H, W) is expected")
        if values.is_floating_point():
            low, high = float(values.min()), float(values.max())
            if not 0 <= low <= high <= 1:
                raise UserError(f"a tensor of floats from {low:g} to {high:g}: 0 to 1 is expected, not normalised")
            values = (values * 255).round().to(torch.uint8)
        return _pixels(values.permute(1, 2, 0).numpy())
    if not isinstance(image, np.ndarray):
        raise UserError(f"a {type(image).__name__} is no image; give a file, a PIL image, an array or a tensor")
    if image.dtype != np.uint8:
        raise UserError(f"an array of {image.dtype}: uint8 is expected")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an array of shape {image.shape}: (H, W, 3) or (H, W) is expected")
    return np.ascontiguousarray(image)


def load(
    path: str | Path,
    *,
    device: Device = "auto",
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
    batch_size: int = 8,
    tta: str | None = None,
    crops: Literal["none", "two_pass"] | None = None,
    exif_orientation: Literal["stored", "upright"] | None = None,
) -> Model:
    """Open a finished model.

    Args:
        path: a run directory (its best/, else final/), an exported model folder, a published SegFormer's folder, or an
            ONNX file that `segformer-spark export` wrote.
        device: auto takes the GPU when there is one.
        precision: arithmetic; tf32 on GPUs that have it.
        batch_size: images at a time.
        tta: test-time augmentation: none, hflip, flips, turns, scales, or several joined by +; None: that of the
            decision that `evaluate --save-decision` wrote, else none.
        crops: around what a first pass finds; None as the model was trained.
        exif_orientation: of files; None as the model was trained.

    Raises:
        UserError: there is no such model.
    """
    settings = InferenceSettings(
        precision=precision,
        batch_size=batch_size,
        tta=tta,
        crops=crops,
        exif_orientation=exif_orientation,
        use_saved=True,
    )
    session = Session.open(Path(path), settings, SingleProcess.on(choose_device(device, 0)))
    return Model(session, batch_size)


def _resolved(config: Config | ResolvedConfig | str | Path, overrides: Sequence[str]) -> ResolvedConfig:
    if isinstance(config, str | Path):
        return load_config(config, overrides=overrides)
    own = config.config if isinstance(config, ResolvedConfig) else config
    if overrides:
        raise UserError("overrides go with a configuration file; change a Config with model_copy")
    return config if isinstance(config, ResolvedConfig) else validate(own.model_dump(), {})


def train(
    config: Config | ResolvedConfig | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Train a model, as `segformer-spark train` does; under torchrun with all its processes.

    Args:
        config: a YAML file, or a configuration.
        overrides: "section.key=value" items, on top of a file.
        resume: "auto", or a checkpoint.
        overwrite: replace an existing run.

    Returns:
        The run directory.

    Raises:
        UserError: configuration or data cannot be used, or the run exists.
    """
    from segformer_spark.training.stop import catch_signals
    from segformer_spark.training.train import TrainOptions, run_training
    from segformer_spark.verbs.launch import joined

    resolved = _resolved(config, overrides)
    before = dict(os.environ)
    try:
        with joined(resolved.config.hardware) as group, catch_signals() as stop:
            run_training(resolved, TrainOptions(resume, overwrite), group, stop)
    finally:
        # DeepSpeed leaves RANK, WORLD_SIZE and others behind, which the next call would take for a launcher's.
        os.environ.clear()
        os.environ.update(before)
    return run_path(resolved.config)


def evaluate(
    run: str | Path,
    *,
    config: Config | ResolvedConfig | str | Path | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: Device = "auto",
    tta: str = "none",
    worst: int = 12,
) -> dict[str, Any]:
    """Evaluate a model at native resolution, as `segformer-spark evaluate` does, in this process.

    Args:
        run: a run directory, or a model.
        config: names the data set; None takes the run's.
        split: None takes the validation split.
        output: folder for results; None takes <run>/evaluation/<split>.
        overrides: "section.key=value" items, on top of the run's configuration or a file.
        worst: how many of the worst images to draw.

    Returns:
        The metrics, as results.json has them.

    Raises:
        UserError: model, data set and configuration do not go together.
    """
    from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation

    model, own = locate_model(Path(run))
    if config is None:
        if own is None:
            raise UserError(f"{model} does not lie in a run directory: give config")
        resolved = load_stored_config(RunDirectory(own).config, overrides=overrides)
    else:
        resolved = _resolved(config, overrides)
    chosen = split or resolved.config.data.val_split
    if output is None:
        if own is None:
            raise UserError(f"{model} does not lie in a run directory: give output")
        output = RunDirectory(own).evaluation / chosen
    settings = InferenceSettings(tta=tta)
    options = EvaluateOptions(model, chosen, Path(output), num_worst=worst, inference=settings)
    return run_evaluation(resolved, options, SingleProcess.on(choose_device(device, 0, os.environ)))
