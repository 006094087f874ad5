"""What validation, evaluation and submission show of an image (`inference` in the configuration)."""

from __future__ import annotations

from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.dataset import Box, Image
from segformer_spark.data.resize import MEAN_COLOR, resize_image
from segformer_spark.data.window import Window, cut_image, square_around


class InferenceView:
    """Native image -> the model's input."""

    def __init__(self, image_size: int, config: InferenceConfig | None = None) -> None:
        self.side, self.config = image_size, config or InferenceConfig()

    def whole(self, image: Image) -> Image:
        """The whole image, resized as `inference.resize` says."""
        if self.config.resize == "native":
            return image
        if self.config.resize == "square":
            return resize_image(image, (self.side, self.side))
        height, width = image.shape[:2]
        factor = self.side / min(height, width)
        return resize_image(image, (round(height * factor), round(width * factor)))

    def around(self, image: Image, box: Box) -> tuple[Image, Window]:
        """A square around `box` at the model's input size, and where it lies."""
        height, width = image.shape[:2]
        window = square_around(box, self.config.crop_margin, (height, width))
        return resize_image(cut_image(image, window, MEAN_COLOR), (self.side, self.side)), window
