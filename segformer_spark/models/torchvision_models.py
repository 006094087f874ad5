"""DeepLabV3 and FCN, as torchvision builds them (Chen et al. 2017, arXiv:1706.05587; Long et al. 2015).

Output stride 8. DeepLabV3 has an auxiliary head on stage 3. Weights keep the library's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import segmentation

from segformer_spark.config.image_size import Size
from segformer_spark.models.interface import SegmentationModel, use_cross_rank_batch_norm


class TorchvisionModel(SegmentationModel):
    """A segmentation network of torchvision; logits come at an eighth of the size."""

    output_stride = 8

    def __init__(self, network: Any, *, freeze_backbone: bool) -> None:
        use_cross_rank_batch_norm(network)
        self._has_auxiliary = network.aux_classifier is not None
        names = ("stage3", "stage4") if self._has_auxiliary else ("stage4",)
        super().__init__(network, names, freeze_backbone=freeze_backbone)
        heads = ("classifier", "aux_classifier") if self._has_auxiliary else ("classifier",)
        self.classifier_names = tuple(f"{head}.4.{part}" for head in heads for part in ("weight", "bias"))

    @property
    def encoder(self) -> nn.Module:
        backbone: Any = self.network.backbone
        return backbone  # type: ignore[no-any-return]

    @property
    def num_classes(self) -> int:
        head: Any = self.network.classifier
        return int(head[-1].out_channels)

    def _encode(self, images: Tensor) -> list[Tensor]:
        maps = self.encoder(images)
        return [maps["aux"], maps["out"]] if self._has_auxiliary else [maps["out"]]

    def penultimate(self, features: Sequence[Tensor]) -> Tensor:
        head: Any = self.network.classifier
        maps = features[-1]
        for layer in list(head)[:-1]:
            maps = layer(maps)
        return maps

    def classify(self, maps: Tensor) -> Tensor:
        head: Any = self.network.classifier
        logits: Tensor = head[-1](maps)
        return logits

    def auxiliary(self, features: Sequence[Tensor]) -> list[Tensor]:
        head: Any = self.network.aux_classifier
        return [head(features[0])] if self._has_auxiliary else []


def build_deeplabv3(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """DeepLabV3 with an auxiliary head."""
    build = getattr(segmentation, f"deeplabv3_{encoder}")
    network = build(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True)
    return TorchvisionModel(network, freeze_backbone=freeze_backbone)


def build_fcn(encoder: str, num_classes: int, image_size: Size, freeze_backbone: bool) -> SegmentationModel:
    """Fully convolutional network."""
    build = getattr(segmentation, f"fcn_{encoder}")
    network = build(weights=None, weights_backbone=None, num_classes=num_classes)
    return TorchvisionModel(network, freeze_backbone=freeze_backbone)
