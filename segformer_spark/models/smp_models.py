"""U-Net, DeepLabV3+, FPN, and UPerNet on Hiera, as segmentation_models_pytorch builds them.

Ronneberger et al. 2015; Chen et al. 2018, arXiv:1802.02611; Lin et al. 2017 and Kirillov et al. 2019; Xiao et al. 2018
and Ryali et al. 2023. Weights keep the library's names. Its heads bring logits to the input's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
from timm.models.hiera import Reroll
from torch import Tensor, nn

from segformer_spark.config.image_size import Size
from segformer_spark.models.interface import SegmentationModel, use_cross_rank_batch_norm
from segformer_spark.models.positions import resize_grid

_STEM = 1
"""Index of the stem's map (stride 2) among the encoder's; 0 is the image, stage i has index i + 1."""


class SmpModel(SegmentationModel):
    """A network of segmentation_models_pytorch.

    Args:
        used: indices of the encoder's maps that the decoder reads; the others do not leave the encoder.
    """

    size_multiple = 32
    classifier_names = ("segmentation_head.0.weight", "segmentation_head.0.bias")

    def __init__(self, network: Any, used: Sequence[int], *, freeze_backbone: bool) -> None:
        use_cross_rank_batch_norm(network)
        names = ["stem" if index == _STEM else f"stage{index - 1}" for index in used]
        super().__init__(network, names, freeze_backbone=freeze_backbone)
        self.used = tuple(used)

    @property
    def encoder(self) -> nn.Module:
        encoder: Any = self.network.encoder
        return encoder  # type: ignore[no-any-return]

    @property
    def num_classes(self) -> int:
        head: Any = self.network.segmentation_head
        return int(head[0].out_channels)

    def _encode(self, images: Tensor) -> list[Tensor]:
        maps = self.encoder(images)
        return [maps[index] for index in self.used]

    def penultimate(self, features: Sequence[Tensor]) -> Tensor:
        decoder: Any = self.network.decoder
        maps: Tensor = decoder(self._with_placeholders(features))
        return maps

    def classify(self, maps: Tensor) -> Tensor:
        head: Any = self.network.segmentation_head
        logits: Tensor = head(maps)
        return logits

    def _with_placeholders(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's list: of maps that it does not read it asks the size at most."""
        finest, first = features[0], self.used[0]
        known = dict(zip(self.used, features, strict=True))
        batch, _, height, width = finest.shape
        return [
            known[index]
            if index in known
            else finest.new_empty(batch, 0, int(height * 2.0 ** (first - index)), int(width * 2.0 ** (first - index)))
            for index in range(self.used[-1] + 1)
        ]


def build_unet(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """U-Net."""
    network = smp.Unet(encoder, encoder_weights=None, classes=num_classes)
    return _down_to_one_value(SmpModel(network, (1, 2, 3, 4, 5), freeze_backbone=freeze_backbone), image_size)


def build_deeplabv3plus(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """DeepLabV3+, output stride 16."""
    network = smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=num_classes)
    return SmpModel(network, (2, 5), freeze_backbone=freeze_backbone)


def build_fpn(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """Feature pyramid network."""
    network = smp.FPN(encoder, encoder_weights=None, classes=num_classes)
    return _down_to_one_value(SmpModel(network, (2, 3, 4, 5), freeze_backbone=freeze_backbone), image_size)


def _down_to_one_value(model: SmpModel, image_size: Size) -> SmpModel:
    """Batch norm in the encoder's last stage needs two values: of two images where the map is one value."""
    if max(image_size) <= model.size_multiple and model.encoder_has_batch_norm:
        model.min_batch = 2
    return model


class HieraModel(SmpModel):
    """UPerNet on Hiera. timm builds Hiera for one size; here its grid follows the images.

    At the size that it was built for it computes what timm's does; elsewhere positions are interpolated.
    """

    def __init__(self, network: Any, *, freeze_backbone: bool) -> None:
        super().__init__(network, (2, 3, 4, 5), freeze_backbone=freeze_backbone)
        hiera = network.encoder.model.model
        self._built: tuple[int, int] = tuple(hiera.tokens_spatial_shape)
        hiera._pos_embed = self._add_positions

    def _encode(self, images: Tensor) -> list[Tensor]:
        self._follow((images.shape[-2], images.shape[-1]))
        return super()._encode(images)

    def position_grid(self, image_size: Size | None = None) -> tuple[int, int] | None:
        """One position per patch of the padded image."""
        if image_size is None:
            return self._built
        height, width = self.padded(image_size)
        rows, columns = self._hiera.patch_stride
        return height // rows, width // columns

    @property
    def _hiera(self) -> Any:
        encoder: Any = self.encoder
        return encoder.model.model

    def _follow(self, size: tuple[int, int]) -> None:
        """Set the order of tokens for images of this size."""
        hiera = self._hiera
        grid = [side // stride for side, stride in zip(size, hiera.patch_stride, strict=True)]
        if list(hiera.tokens_spatial_shape) == grid:
            return
        hiera.tokens_spatial_shape = grid
        hiera.mask_spatial_shape = [side // unit for side, unit in zip(grid, hiera.mask_unit_size, strict=True)]
        hiera.unroll.size = grid
        hiera.reroll = Reroll(
            size, hiera.patch_stride, hiera.unroll.schedule, hiera.stage_ends, len(hiera.unroll.schedule)
        )

    def _add_positions(self, tokens: Tensor) -> Tensor:
        hiera = self._hiera
        positions, grid = hiera.pos_embed, tuple(hiera.tokens_spatial_shape)
        if grid != self._built:
            positions = resize_grid(positions, self._built, grid)
        moved: Tensor = tokens + positions
        return moved


def build_hiera(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """UPerNet on Hiera, with learnt positions for the grid of images of `image_size`."""
    step = SmpModel.size_multiple
    padded = tuple(-(-side // step) * step for side in image_size)
    network = smp.UPerNet(f"tu-{encoder}", encoder_weights=None, classes=num_classes, img_size=padded)
    model = HieraModel(network, freeze_backbone=freeze_backbone)
    if padded == (step, step):
        model.min_batch = 2  # batch norm of the decoder's coarsest map, which is one value then
    return model
