"""What validation, evaluation and submission show of an image (`inference` in the configuration)."""

from __future__ import annotations

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.dataset import Box, Image, SegmentationDataset
from segformer_spark.data.resize import MEAN_COLOR, resize_image
from segformer_spark.data.window import Window, cut_image, window_around
from segformer_spark.errors import ConfigError


class InferenceView:
    """Native image -> the model's input, of `size` (height, width) unless the configuration says otherwise."""

    def __init__(self, size: Size, config: InferenceConfig | None = None) -> None:
        self.size, self.config = size, config or InferenceConfig()

    def whole(self, image: Image) -> Image:
        """The whole image, resized as `inference.resize` says."""
        height, width = image.shape[:2]
        return resize_image(image, self.whole_size((height, width)))

    def whole_size(self, size: Size) -> Size:
        """(height, width) at which a whole image of `size` is shown."""
        if self.config.resize == "native":
            return size
        if self.config.resize == "image_size":
            return self.size
        factor = min(self.size) / min(size)
        return round(size[0] * factor), round(size[1] * factor)

    def around(self, image: Image, box: Box) -> tuple[Image, Window]:
        """What lies around `box`, in the ratio and at the size of the model's input, and where that is."""
        height, width = image.shape[:2]
        window = window_around(box, self.config.crop_margin, (height, width), ratio=self.size)
        return resize_image(cut_image(image, window, MEAN_COLOR), self.size), window


def check_view(config: InferenceConfig, dataset: SegmentationDataset) -> None:
    """Raise ConfigError when a labelled data set cannot be shown in this way."""
    if config.crops == "box" and any(dataset.box(index) is None for index in range(len(dataset))):
        raise ConfigError("inference.crops box: this data set has no labelled boxes; use two_pass")
    refuse_crops_without_background(config, dataset.classes.background)


def refuse_crops_without_background(config: InferenceConfig, background: int | None) -> None:
    """Raise ConfigError for crops where no class is outside of them."""
    if config.crops != "none" and background is None:
        raise ConfigError(f"inference.crops {config.crops}: outside of a crop is background; these classes have none")
