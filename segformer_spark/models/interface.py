"""What a segmentation model is to the rest of the package, whatever library it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.config.image_size import Size
from segformer_spark.errors import ConfigError
from segformer_spark.kernels.select import Setting
from segformer_spark.models.batch_norm import CrossRankBatchNorm2d
from segformer_spark.ops.batch_statistics import Reduce

if TYPE_CHECKING:
    from segformer_spark.models.graphed_stages import Capture

DECODER = "decoder"
"""Name of the map that the classifier sees, among `named_features`."""


class SegmentationModel(nn.Module):
    """Normalised images in, logits out: an encoder with named features, and a decode head.

    A subclass sets the attributes and has `_encode`, `penultimate` and `classify`.

    Attributes:
        name: as in the registry.
        taps: one identity per feature of the encoder, finest first: hooks on `taps["stage4"]` see that map.
        size_multiple: what the network's sides divide by. Images are padded to it at the right and bottom with the
            normalised mean, and logits are cut back; if it is not 1, output_stride is.
        output_stride: pixels of the image per value of the logits.
        min_side: the smallest side in pixels of an image that it can take.
        min_batch: images that all ranks together need in a training step, for batch norm over maps of one value.
        classifier_names: stored names of the tensors that depend on the number of classes.
    """

    name: str
    size_multiple: int = 1
    output_stride: int = 1
    min_side: int = 1
    min_batch: int = 1
    classifier_names: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, feature_names: Sequence[str], *, freeze_backbone: bool = False) -> None:
        super().__init__()
        self.network = network
        self.taps = nn.ModuleDict({name: nn.Identity() for name in feature_names})
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.encoder.requires_grad_(False)

    @property
    def encoder(self) -> nn.Module:
        """The backbone; all other parameters are the head's."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        raise NotImplementedError

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of what `encode` returns."""
        return tuple(self.taps)

    def _encode(self, images: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError

    def penultimate(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps -> the map (B, D, h, w) that the classifier sees."""
        raise NotImplementedError

    def classify(self, maps: Tensor) -> Tensor:
        """That map -> logits on the network's own grid."""
        raise NotImplementedError

    def auxiliary(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of auxiliary heads on their own grid, for the loss; none by default."""
        return []

    def forward(self, images: Tensor, *, only_features: bool = False, with_auxiliary: bool = False) -> Any:
        """(B, 3, H, W) float -> logits on the model's own grid, which bilinear interpolation brings to (H, W).

        Args:
            only_features: return the encoder's maps instead.
            with_auxiliary: return a list: logits, then those of auxiliary heads.
        """
        features = self.encode(images)
        if only_features:
            return features
        size = (images.shape[-2], images.shape[-1])
        return self.decode_all(features, size) if with_auxiliary else self.decode(features, size)

    def full_logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes, H, W)."""
        logits: Tensor = self(images)
        size = (images.shape[-2], images.shape[-1])
        if logits.shape[-2:] == size:
            return logits
        return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float -> maps (B, C_i, H_i, W_i) of the padded images, finest first.

        Raises:
            ConfigError: a side is smaller than `min_side`.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_side:
            raise ConfigError(
                f"{self.name}: an image of {width} x {height} pixels is too small, sides from {self.min_side} on are "
                "possible (data.image_size, inference.resize, inference.window)"
            )
        high, wide = self.padded((height, width))
        if (high, wide) != (height, width):
            images = functional.pad(images, (0, wide - width, 0, high - height))
        maps = self._encode(images)
        return tuple(tap(features) for tap, features in zip(self.taps.values(), maps, strict=True))

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The encoder's maps of images of `size` (H, W) -> logits."""
        return self._cut(self.classify(self.penultimate(features)), size)

    def decode_all(self, features: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Logits, and those of auxiliary heads."""
        return [self.decode(features, size), *(self._cut(logits, size) for logits in self.auxiliary(features))]

    def logits_and_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits on the model's own grid and the map that the classifier saw, both without what padding added."""
        size = (images.shape[-2], images.shape[-1])
        maps = self.penultimate(self.encode(images))
        logits = self._cut(self.classify(maps), size)
        shares = (own / padded for own, padded in zip(size, self.padded(size), strict=True))
        rows, columns = (math.ceil(side * share) for side, share in zip(maps.shape[-2:], shares, strict=True))
        return logits, maps[..., :rows, :columns]

    def named_features(self, images: Tensor) -> dict[str, Tensor]:
        """Every map of the encoder by its name, and the map that the classifier sees as `decoder`; of padded images."""
        features = self.encode(images)
        return {**dict(zip(self.taps, features, strict=True)), DECODER: self.penultimate(features)}

    @property
    def norms_after_global_pooling(self) -> list[CrossRankBatchNorm2d]:
        """Batch norms over one value per channel and image."""
        return [norm for norm in self.modules() if isinstance(norm, CrossRankBatchNorm2d) and norm.after_global_pooling]

    def position_grid(self, image_size: Size | None = None) -> tuple[int, int] | None:
        """(rows, columns) of the learnt positions of a network built for images of this size; None: a square grid.

        Args:
            image_size: None for the size that this network was built for.
        """
        return None

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that the network is shown for images of `size`."""
        step = self.size_multiple
        return (-(-size[0] // step) * step, -(-size[1] // step) * step)

    def _cut(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits without what padding added."""
        return logits if self.padded(size) == size else logits[..., : size[0], : size[1]]

    def train(self, mode: bool = True) -> SegmentationModel:
        """As nn.Module; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.encoder.eval()
        return self

    @property
    def encoder_has_batch_norm(self) -> bool:
        """Whether training the encoder depends on the other images of the batch."""
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.encoder.modules())
        return norms and not self.freeze_backbone

    def reduce_batch_norm(self, reduce: Reduce | None) -> None:
        """Let batch normalisation take its statistics over all ranks through `reduce`; None for this rank alone."""
        for module in self.modules():
            if isinstance(module, CrossRankBatchNorm2d):
                module.reduce = reduce

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are not the encoder's."""
        own = {id(parameter) for parameter in self.encoder.parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in own)

    def distances_from_head(self) -> dict[str, int]:
        """{name: how many blocks of the encoder lie between a parameter and the head}; 0 in the head, else 1."""
        head = {id(parameter) for parameter in self.head_parameters()}
        return {name: int(id(parameter) not in head) for name, parameter in self.named_parameters()}

    def stored_names(self) -> dict[str, str]:
        """{name in `state_dict()`: name in files}: those of the library that the network comes from."""
        return {name: name.removeprefix("network.") for name in self.state_dict()}

    def use_kernels(self, setting: Setting) -> None:
        """Choose the arithmetic, as hardware.kernels does; only SegFormer has a choice."""

    def checkpoint_activations(self) -> None:
        """Recompute the encoder's blocks in the backward pass."""
        raise ConfigError(f"training.activation_checkpointing is for segformer, the model is {self.name}")

    def recomputed_blocks(self) -> Sequence[nn.Module]:
        """The blocks that `checkpoint_activations` chose."""
        return ()

    def compile_encoder(self, *, by_block: bool) -> None:
        """Let torch.compile build the encoder at its first use, as a whole or block by block."""
        raise ConfigError(f"hardware.compile is for segformer, the model is {self.name}")

    def graph_encoder(self, images: Tensor, capture: Capture) -> None:
        """Let `capture` record the encoder for training images of this shape."""
        raise ConfigError(f"hardware.cuda_graphs is for segformer, the model is {self.name}")

    def forget_graphs(self) -> None:
        """Run the encoder eagerly, after `graph_encoder`."""


def use_cross_rank_batch_norm(network: nn.Module) -> None:
    """Put a CrossRankBatchNorm2d in the place of every BatchNorm2d; names, weights and statistics stay."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, CrossRankBatchNorm2d.from_batch_norm(child))
    for module in network.modules():
        if isinstance(module, nn.Sequential) and any(_pools_globally(child) for child in module):
            for norm in module.modules():
                if isinstance(norm, CrossRankBatchNorm2d):
                    norm.after_global_pooling = True


def _pools_globally(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
