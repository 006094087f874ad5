"""Which models and losses cannot train under hardware.deterministic on a GPU: some backward passes are only there with
atomic additions, whose order changes. torch raises at the first of them, in the middle of a step; here it has a name
before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from segformer_spark.config.image_size import Size, size_text
from segformer_spark.config.schema import Config, LossConfig
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.errors import ConfigError
from segformer_spark.kernels.select import select_arithmetic
from segformer_spark.losses.build import WeightedSum, build_loss
from segformer_spark.models.interface import SegmentationModel

_NOT_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward": "adaptive average pooling",
    "adaptive_max_pool2d_backward": "adaptive max pooling",
    "upsample_bicubic2d_backward": "bicubic interpolation",
    "_upsample_bicubic2d_aa_backward": "bicubic interpolation",
    "_upsample_bilinear2d_aa_backward": "bilinear interpolation with antialiasing",
    "reflection_pad2d_backward": "reflection padding",
    "replication_pad2d_backward": "replication padding",
    "grid_sampler_2d_backward": "grid sampling",
    "nll_loss2d_forward": "the negative log-likelihood of maps",
    "kthvalue": "the k-th smallest value",
}
"""Of the operations that torch.use_deterministic_algorithms makes an error on CUDA devices, those that networks have.
Its documentation lists them: https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html"""


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _NOT_DETERMINISTIC:
            self.found[_NOT_DETERMINISTIC[name]] = None
        return func(*args, **(kwargs or {}))


def not_deterministic_in_model(model: SegmentationModel, image_size: Size) -> list[str]:
    """Parts of a training step whose backward pass has no deterministic CUDA kernel. Computes nothing: on fake tensors.

    Args:
        image_size: (height, width) of the images in pixels.
    """
    was_training = model.training
    model.train()

    def step() -> None:
        with FakeTensorMode() as mode:
            state: dict[str, Any] = {
                name: mode.from_tensor(value) for name, value in model.state_dict(keep_vars=True).items()
            }
            images = torch.zeros(max(2, model.min_batch), 3, *image_size)
            outputs = functional_call(model, state, (images,), {"with_auxiliary": True})
            torch.stack([logits.float().sum() for logits in outputs]).sum().backward()  # type: ignore[no-untyped-call]

    try:
        return _found(step)
    finally:
        model.train(was_training)


def not_deterministic_in_loss(loss: WeightedSum, num_classes: int) -> list[str]:
    """The same of a loss that is not reduced over ranks, on small random logits."""

    def step() -> None:
        generator = torch.Generator().manual_seed(0)
        logits: Tensor = torch.randn(2, num_classes, 8, 8, generator=generator).requires_grad_()
        labels = torch.randint(0, num_classes, (2, 32, 32), generator=generator, dtype=torch.uint8)
        labels[:, :4] = IGNORE_INDEX
        loss.of_outputs([logits], labels).backward()  # type: ignore[no-untyped-call]

    return _found(step)


def _found(step: Callable[[], None]) -> list[str]:
    with _Seen() as seen:
        step()
    return list(seen.found)


def check_determinism(config: Config, model: SegmentationModel, loss: LossConfig, device: torch.device) -> None:
    """Refuse what hardware.deterministic cannot have on a GPU.

    Args:
        loss: with class weights as numbers.

    Raises:
        ConfigError: model or loss have parts whose backward pass is not deterministic; they are named.
    """
    if not config.hardware.deterministic or device.type != "cuda":
        return
    own_loss = build_loss(loss, model.num_classes, IGNORE_INDEX)
    own_loss.use_kernels(select_arithmetic(config.hardware.kernels, device))
    reasons = []
    if of_model := not_deterministic_in_model(model, config.data.input_size):
        reasons.append(f"{model.name} at {size_text(config.data.image_size)} px has {' and '.join(of_model)}")
    if of_loss := not_deterministic_in_loss(own_loss, model.num_classes):
        reasons.append(f"training.loss.type {loss.type} has {' and '.join(of_loss)}")
    if reasons:
        raise ConfigError(
            f"hardware.deterministic: {', and '.join(reasons)}, whose backward pass has no deterministic kernel on "
            "GPUs; choose another, set hardware.deterministic=false, or train on a CPU"
        )
