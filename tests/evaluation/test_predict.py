from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from segformer_spark.data.loader import EvalItem
from segformer_spark.evaluation.predict import TTA_FLIPS, Predictor
from segformer_spark.models.segformer import build_segformer, resize_logits


class Corner(nn.Module):
    """Class 1 where the image is bright, class 2 at the left edge of whatever it is shown: not flip-equivariant."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean(1)[:, ::4, ::4]
        left = torch.zeros_like(bright)
        left[:, :, 0] = 10.0
        return torch.stack([torch.zeros_like(bright), bright * 3, left], 1)


def item(size: tuple[int, int], index: int = 0, side: int = 32) -> EvalItem:
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    pixels[:, :16, 16:] = 255
    return EvalItem(index, pixels, size, None)


def predict(model: nn.Module, items: list[EvalItem], tta: str = "none") -> list[np.ndarray]:
    predictor = Predictor(model, torch.device("cpu"), tta=tta)  # type: ignore[arg-type]
    return [ids.numpy() for _, ids in predictor.predict([items])]


def test_native_sizes_within_one_batch() -> None:
    sizes = [(32, 32), (50, 70), (128, 96)]
    for ids, size in zip(predict(Corner(), [item(s) for s in sizes]), sizes, strict=True):
        assert ids.shape == size
        assert ids.dtype == np.uint8


def test_logits_are_upsampled_before_argmax() -> None:
    """argmax first and nearest-neighbour upsampling after gives stairs; this gives the bilinear contour."""
    model = build_segformer("b0", ["a", "b", "c"], seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    one = EvalItem(0, torch.randint(0, 255, (3, 64, 64), generator=generator, dtype=torch.uint8), (200, 150), None)
    from segformer_spark.data.transforms import normalize_images

    with torch.inference_mode():
        expected = resize_logits(model(normalize_images(one.pixels[None])), (200, 150))[0].argmax(0)
    np.testing.assert_array_equal(predict(model, [one])[0], expected.numpy())


@pytest.mark.parametrize("tta", list(TTA_FLIPS))
def test_flips_are_undone(tta: str) -> None:
    class Bright(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images.mean(1)[:, ::4, ::4]
            return torch.stack([-bright, bright], 1)

    ids = predict(Bright(), [item((32, 32))], tta)[0]
    assert ids[4, 28] == 1
    assert ids[4, 4] == ids[28, 28] == ids[28, 4] == 0


def test_flips_average_what_is_not_equivariant() -> None:
    assert (predict(Corner(), [item((32, 32))])[0][20:, 0] == 2).all()
    flipped = predict(Corner(), [item((32, 32))], "hflip")[0]
    assert (flipped[20:, 0] == 2).all()
    assert (flipped[20:, -1] == 2).all(), "the mirrored pass sees its own left edge here"
    assert (predict(Corner(), [item((32, 32))])[0][20:, -1] == 0).all()


def test_training_mode_is_restored() -> None:
    model = build_segformer("b0", ["a", "b"], seed=0).train()
    predict(model, [item((32, 32))])
    assert model.training
