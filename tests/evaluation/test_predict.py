from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalItem, eval_item
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.evaluation.augmented import TTA
from segformer_spark.evaluation.crops import main_box
from segformer_spark.evaluation.enlarged import enlarged_ids
from segformer_spark.evaluation.predict import Predictor
from tests.tiny import tiny_segformer


def torchs(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


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
    predictor = Predictor(model, torch.device("cpu"), InferenceView((32, 32)), tta=tta)  # type: ignore[arg-type]
    return [ids.numpy() for _, ids in predictor.predict([items])]


def test_native_sizes_within_one_batch() -> None:
    sizes = [(32, 32), (50, 70), (128, 96)]
    for ids, size in zip(predict(Corner(), [item(s) for s in sizes]), sizes, strict=True):
        assert ids.shape == size
        assert ids.dtype == np.uint8


def test_logits_are_upsampled_before_argmax() -> None:
    """argmax first and nearest-neighbour upsampling after gives stairs; this gives the bilinear contour."""
    model = tiny_segformer(["a", "b", "c"], seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    one = EvalItem(0, torch.randint(0, 255, (3, 64, 64), generator=generator, dtype=torch.uint8), (200, 150), None)
    from segformer_spark.data.transforms import normalize_images

    with torch.inference_mode():
        expected = torchs(model(normalize_images(one.pixels[None])), (200, 150))[0].argmax(0)
    np.testing.assert_array_equal(predict(model, [one])[0], expected.numpy())


@pytest.mark.parametrize("tta", TTA)
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
    model = tiny_segformer(["a", "b"], seed=0).train()
    predict(model, [item((32, 32))])
    assert model.training


class Red(nn.Module):
    """Class 1 where red is bright; a crop at a higher scale keeps small things apart that shrinking would blur."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = torch.nn.functional.avg_pool2d(images[:, :1], 4)
        return torch.cat([torch.zeros_like(red), red], 1)


def scene(box: tuple[int, int, int, int], size: tuple[int, int] = (240, 320)) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3] + 1, box[0] : box[2] + 1, 0] = 255
    return image


def predict_scene(
    image: np.ndarray, crops: str, box: tuple[int, int, int, int] | None, tta: str = "none"
) -> np.ndarray:
    view = InferenceView((64, 64), InferenceConfig(crops=crops))  # type: ignore[arg-type]
    predictor = Predictor(Red(), torch.device("cpu"), view, tta=tta, background=0)  # type: ignore[arg-type]
    one = eval_item(0, image, None, box, view)
    ((_, ids),) = predictor.predict([[one]])
    return ids.numpy()


@pytest.mark.parametrize("tta", ["none", "flips"])
@pytest.mark.parametrize("box", [(100, 60, 131, 79), (0, 0, 23, 30), (290, 200, 319, 239)])
def test_crops_are_pasted_back_at_native_resolution(box: tuple[int, int, int, int], tta: str) -> None:
    image = scene(box)
    truth = image[..., 0] > 0
    for crops in ("box", "two_pass"):
        ids = predict_scene(image, crops, box, tta)
        assert ids.shape == truth.shape
        iou = (truth & (ids == 1)).sum() / (truth | (ids == 1)).sum()
        assert iou > 0.9, crops
    whole = predict_scene(image, "none", None, tta)
    assert (truth & (whole == 1)).sum() / (truth | (whole == 1)).sum() < 0.9, "shrunk by five, small things blur"


def test_outside_of_the_crop_is_background() -> None:
    image = scene((100, 60, 131, 79))
    image[200:230, 280:310, 0] = 255
    assert (predict_scene(image, "box", (100, 60, 131, 79))[200:230] == 0).all()
    assert (predict_scene(image, "two_pass", None)[205:225, 285:305] == 1).mean() > 0.8, "both parts are found"


def test_nothing_found_is_background_everywhere() -> None:
    assert (predict_scene(np.zeros((100, 120, 3), np.uint8), "two_pass", None) == 0).all()


def test_main_box_leaves_specks_out() -> None:
    ids = np.zeros((100, 120), np.uint8)
    ids[20:40, 30:60] = 1
    ids[50:60, 30:60] = 2
    ids[95:97, 100:102] = 1
    assert main_box(ids, 0) == (30, 20, 59, 59)
    assert main_box(np.zeros((5, 5), np.uint8), 0) is None


def test_crops_need_a_background_class() -> None:
    view = InferenceView((64, 64), InferenceConfig(crops="two_pass"))
    with pytest.raises(ConfigError, match="outside of a crop is background; these classes have none"):
        Predictor(Red(), torch.device("cpu"), view)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((64, 64), "image_size", (64, 64)),
        ((64, 64), "short_side", (64, 85)),
        ((64, 64), "native", (240, 320)),
        ((48, 96), "image_size", (48, 96)),
        ((48, 96), "short_side", (48, 64)),
    ],
)
def test_how_a_whole_image_is_shown(size: tuple[int, int], resize: str, expected: tuple[int, int]) -> None:
    view = InferenceView(size, InferenceConfig(resize=resize))  # type: ignore[arg-type]
    assert view.whole(scene((1, 1, 2, 2))).shape[:2] == expected
    predictor = Predictor(Red(), torch.device("cpu"), view)  # type: ignore[arg-type]
    items = [
        eval_item(i, scene((8, 8, 99, 79), size), None, None, view) for i, size in enumerate([(240, 320), (200, 320)])
    ]
    shapes = [ids.shape for _, ids in predictor.predict([items])]
    assert shapes == [(240, 320), (200, 320)], "several sizes in one batch"


@pytest.mark.parametrize("way", ["predict", "logits", "maps"])
def test_logits_that_are_no_numbers_are_an_error(way: str) -> None:
    """Enlarging makes zeros of them, which would be scored as any others."""
    model = tiny_segformer(["a", "b", "c"], seed=0)
    predictor = Predictor(model, torch.device("cpu"), InferenceView((32, 32)))
    next(getattr(predictor, way)([[item((32, 32))]]))
    with torch.no_grad():
        model.network.decode_head.classifier.bias[1] = float("nan")
    with pytest.raises(UserError, match=r"logits are not numbers \(NaN\) in fp32"):
        next(getattr(predictor, way)([[item((32, 32))]]))


def test_an_infinite_score_stays_where_it_is() -> None:
    logits = torch.zeros(3, 32, 32)
    logits[1] = 1
    logits[1, 10, 10] = -torch.inf
    ids = enlarged_ids([logits], (128, 128))
    assert set(np.argwhere(ids.numpy() != 1).ravel().tolist()) <= set(range(36, 48)), "at the pixels around it"
    assert ids[42, 42] != 1


@pytest.mark.parametrize("band", [1, 10**9])
def test_bands_and_flips_decide_as_whole_maps(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import segformer_spark.evaluation.enlarged as module

    monkeypatch.setattr(module, "_BAND_VALUES", band)
    generator = torch.Generator().manual_seed(0)
    passes = [torch.randn(5, 9, 13, generator=generator) for _ in range(3)]
    whole = [torchs(one[None], (70, 51))[0] for one in passes]
    assert torch.equal(enlarged_ids(passes[:1], (70, 51)).long(), whole[0].argmax(0))
    mean = torch.stack([one.softmax(0) for one in whole]).mean(0)
    assert torch.equal(enlarged_ids(passes, (70, 51)).long(), mean.argmax(0))


@pytest.mark.parametrize(("full", "expected"), [(False, (48, 80)), (True, (32, 64))])
def test_a_loss_that_needs_all_logits_sees_masks_of_the_inputs_size(full: bool, expected: tuple[int, int]) -> None:
    model = tiny_segformer(["a", "b", "c"], seed=0)
    view = InferenceView((32, 64))
    pixels, mask = scene((8, 8, 20, 20), (48, 80)), np.zeros((48, 80), np.uint8)
    mask[8:20, 8:20] = 2
    seen: list[torch.Tensor] = []

    class Loss:
        needs_full_size = full

        def of_coarse(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.append(labels)
            return logits.mean()

    predictor = Predictor(model, torch.device("cpu"), view)
    ((_, ids, _),) = predictor.predict_with_loss([[eval_item(0, pixels, mask, None, view)]], Loss())
    assert ids.shape == (48, 80)
    assert seen[0].shape == (1, *expected)
    assert set(seen[0].unique().tolist()) == {0, 2}
