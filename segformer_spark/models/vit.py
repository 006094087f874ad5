"""ViT with a convolutional head: plain tokens at stride 16, brought to stride 4 in two steps, then to the full size.

Dosovitskiy et al. 2021, arXiv:2010.11929; the head is a short form of SETR's progressive upsampling (Zheng et al. 2021,
arXiv:2012.15840).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.config.image_size import Size
from segformer_spark.models.batch_norm import CrossRankBatchNorm2d
from segformer_spark.models.interface import SegmentationModel

_WIDTHS = (512, 256, 256, 256)
_UPSAMPLED = 2
"""The first convolutions, each followed by upsampling to twice the size."""

_HEAD_STRIDE = 4


class ConvHead(nn.Module):
    """3 x 3 convolutions with batch norm and ReLU, and a 1 x 1 classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate(_WIDTHS):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), CrossRankBatchNorm2d(width), nn.ReLU(True)]
            if number < _UPSAMPLED:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels, num_classes, 1)


class ViT(SegmentationModel):
    """A Vision Transformer of timm on images of any size; positions are interpolated to the grid (bicubic)."""

    size_multiple = 16
    classifier_names = ("head.classifier.weight", "head.classifier.bias")

    def __init__(self, encoder: nn.Module, head: ConvHead, *, freeze_backbone: bool) -> None:
        super().__init__(
            nn.ModuleDict({"encoder": encoder, "head": head}), ("tokens",), freeze_backbone=freeze_backbone
        )

    @property
    def encoder(self) -> nn.Module:
        network: Any = self.network
        return network["encoder"]  # type: ignore[no-any-return]

    @property
    def num_classes(self) -> int:
        return int(self._head.classifier.out_channels)

    @property
    def _head(self) -> ConvHead:
        network: Any = self.network
        return network["head"]  # type: ignore[no-any-return]

    def _encode(self, images: Tensor) -> list[Tensor]:
        encoder: Any = self.encoder
        maps: list[Tensor] = encoder.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        return maps

    def penultimate(self, features: Sequence[Tensor]) -> Tensor:
        maps: Tensor = self._head.layers(features[-1])
        return maps

    def classify(self, maps: Tensor) -> Tensor:
        logits: Tensor = self._head.classifier(maps)
        return functional.interpolate(logits, scale_factor=_HEAD_STRIDE, mode="bilinear", align_corners=False)


def build_vit(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """ViT with the convolutional head."""
    network: Any = timm.create_model(encoder, pretrained=False, num_classes=0, dynamic_img_size=True)
    return ViT(network, ConvHead(network.embed_dim, num_classes), freeze_backbone=freeze_backbone)
