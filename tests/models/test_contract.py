"""What every model of the registry has to do, whatever library it comes from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from segformer_spark.checkpoint.export import load_model
from segformer_spark.config.load import load_config
from segformer_spark.config.schema import CustomVariantConfig, ModelConfig
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.data.loader import TrainBatch
from segformer_spark.errors import ConfigError
from segformer_spark.models.batch_norm import CrossRankBatchNorm2d
from segformer_spark.models.interface import DECODER, SegmentationModel
from segformer_spark.models.positions import resize_grid
from segformer_spark.models.pretrained import build_model, load_whole
from segformer_spark.models.registry import MODELS, describe_model, find_architecture
from tests.ranks import Group, run_on_ranks
from tests.tiny import TINY, export_live, untrained_card

NUM_CLASSES = 5
NAMES = [f"class {index}" for index in range(NUM_CLASSES)]
SMALL = {
    "segformer": {"variant": "custom", "custom": CustomVariantConfig(**asdict(TINY))},
    "unet": {"encoder": "resnet18"},
    "deeplabv3plus": {"encoder": "resnet18"},
    "fpn": {"encoder": "resnet18"},
    "hiera": {"encoder": "hiera_tiny_224"},
    "vit": {"encoder": "vit_tiny_patch16_224"},
}
"""The smallest of each; widths and depths differ in size only."""


def config(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": name, "pretrained": "none", **SMALL.get(name, {}), **changes})


def small(name: str, size: int = 64, **changes: Any) -> SegmentationModel:
    return build_model(config(name, **changes), NAMES, seed=0, image_size=(size, size))


every_model = pytest.mark.parametrize("name", MODELS)
_LARGE = ("deeplabv3", "fcn", "hiera")
every_model_large_ones_in_the_sweep = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.sweep] if name in _LARGE else []) for name in MODELS]
)
"""deeplabv3 and fcn come with ResNet-50 at least."""


@every_model
@pytest.mark.parametrize(
    "size", [(97, 131), *(pytest.param(size, marks=pytest.mark.sweep) for size in ((512, 512), (720, 1280)))], ids=str
)
def test_logits_come_at_the_size_of_the_image(name: str, size: tuple[int, int]) -> None:
    """Shapes alone: on the meta device nothing is computed."""
    # segformer's own operations ask the device for its autocast, and meta has none; b0 is small enough.
    device = "cpu" if name == "segformer" else "meta"
    model = small(name, max(size)).to(device).eval()
    images = torch.zeros(1, 3, *size, device=device)
    with torch.no_grad():
        assert model.full_logits(images).shape == (1, NUM_CLASSES, *size)
        coarse = model(images)
    assert coarse.shape[-2:] == tuple(-(-side // model.output_stride) for side in size)
    assert model.output_stride == 1 or model.size_multiple == 1


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = small(name).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    torch.manual_seed(0)  # stochastic depth could drop a whole branch
    outputs = model(images, with_auxiliary=True)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


@every_model
def test_head_and_encoder_share_the_parameters(name: str) -> None:
    model = small(name)
    head, encoder = ({id(p) for p in part} for part in (model.head_parameters(), model.encoder.parameters()))
    assert head.isdisjoint(encoder)
    assert head | encoder == {id(p) for p in model.parameters()}
    distances = model.distances_from_head()
    assert {id(p) for n, p in model.named_parameters() if distances[n] == 0} == head
    frozen = small(name, freeze_backbone=True).train()
    assert not any(p.requires_grad for p in frozen.encoder.parameters())
    assert not any(module.training for module in frozen.encoder.modules())
    assert all(p.requires_grad for p in frozen.head_parameters())


@every_model
def test_features_are_named_and_can_be_hooked(name: str) -> None:
    model = small(name).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen: dict[str, Tensor] = {}
    for feature, tap in model.taps.items():
        tap.register_forward_hook(lambda module, inputs, output, feature=feature: seen.update({feature: output}))
    with torch.no_grad():
        logits = model(images)
        hooked = dict(seen)
        named = model.named_features(images)
        again = model._cut(model.classify(named[DECODER]), (64, 64))
    assert set(named) == {*model.feature_names, DECODER}
    assert set(hooked) == set(model.feature_names)
    for feature, maps in hooked.items():
        torch.testing.assert_close(maps, named[feature])
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)


@every_model
def test_evaluation_does_not_depend_on_the_batch(name: str) -> None:
    model = small(name).double().eval()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)


@every_model
def test_padding_shows_the_mean_and_is_cut_off(name: str) -> None:
    model = small(name).eval()
    step = model.size_multiple
    images = torch.randn(1, 3, 64 - 5, 64 - 3, generator=torch.Generator().manual_seed(3))
    padded = torch.zeros(1, 3, 64, 64)  # the normalised mean
    padded[..., :59, :61] = images
    with torch.no_grad():
        own = model(images)
        if step > 1:
            torch.testing.assert_close(own, model(padded)[..., :59, :61])
        else:
            assert own.shape[-2:] == (-(-59 // model.output_stride), -(-61 // model.output_stride))


@every_model
def test_scores_and_features_lie_on_the_image(name: str) -> None:
    """What anomaly scores are made of: the logits of `forward`, and features without what padding added."""
    model = small(name).eval()
    images = torch.randn(1, 3, 64 - 5, 96 - 3, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        logits, maps = model.logits_and_maps(images)
        torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
        whole = model.penultimate(model.encode(images))
    padded = [-(-side // model.size_multiple) * model.size_multiple for side in (59, 93)]
    for side, own, cut, full in zip((59, 93), padded, maps.shape[-2:], whole.shape[-2:], strict=True):
        assert cut == -(-full * side // own)
    assert torch.equal(maps, whole[..., : maps.shape[-2], : maps.shape[-1]])


def test_hiera_follows_the_size_of_images_and_comes_back() -> None:
    """At its own size timm's network; elsewhere what timm computes with positions resized beforehand."""
    model = small("hiera", 64).eval()
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(7))
    own = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        before, other, after = model(own), model(images), model(own)
    assert torch.equal(before, after)
    theirs = smp.UPerNet("tu-hiera_tiny_224", encoder_weights=None, classes=NUM_CLASSES, img_size=(96, 128)).eval()
    state = {model.stored_names()[live]: value for live, value in model.state_dict().items()}
    key = "encoder.model.model.pos_embed"
    grid = state[key].view(1, 16, 16, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, (24, 32), mode="bicubic", antialias=True, align_corners=False)
    theirs.load_state_dict({**state, key: grid.flatten(2).transpose(1, 2)})
    with torch.no_grad():
        torch.testing.assert_close(other, theirs(images), rtol=1e-4, atol=1e-5)


@every_model_large_ones_in_the_sweep
def test_bf16_gives_finite_logits_close_to_fp32(name: str) -> None:
    model = small(name).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            short = model(images).float()
    assert bool(short.isfinite().all())
    assert float((short - exact).norm() / exact.norm()) < 0.05


@every_model_large_ones_in_the_sweep
def test_bf16_trains(name: str) -> None:
    model = small(name).train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images, with_auxiliary=True)
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.dtype == torch.float32
        assert bool(value.grad.isfinite().all()), parameter


@every_model
def test_the_smallest_image_is_taken_and_a_smaller_one_refused(name: str) -> None:
    model = small(name).eval()
    side = model.min_side
    with torch.no_grad():
        assert model.full_logits(torch.zeros(1, 3, side, side + 9)).shape == (1, NUM_CLASSES, side, side + 9)
        if side > 1:
            with pytest.raises(ConfigError, match=f"{side + 9} x {side - 1} pixels is too small, sides from {side}"):
                model(torch.zeros(1, 3, side - 1, side + 9))


@every_model
def test_the_smallest_training_size_needs_as_many_images_as_the_model_says(name: str) -> None:
    """At 32 pixels the last map may be one value, of which batch norm knows no deviation."""
    assert (small(name).min_batch, small(name, 32).min_batch) == (1, 2 if name in ("unet", "fpn", "hiera") else 1)
    model = small(name, 32).train()
    model(torch.randn(model.min_batch, 3, 32, 32))
    if model.min_batch > 1:
        with pytest.raises(ValueError, match="more than 1 value"):
            model(torch.randn(1, 3, 32, 32))


@every_model
def test_weights_can_be_stored_and_loaded(name: str, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    model, other = small(name), build_model(config(name), NAMES, seed=1, image_size=(64, 64))
    names = model.stored_names()
    assert set(names) == set(model.state_dict())
    assert len(set(names.values())) == len(names)
    assert set(model.classifier_names) <= set(names.values())
    state = {names[live]: value.contiguous() for live, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    load_whole(other, tmp_path)
    for live, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[live]), live
    fewer = build_model(config(name), NAMES[:2], seed=1, image_size=(64, 64))
    load_whole(fewer, tmp_path, new_classes=True)
    assert torch.equal(next(fewer.encoder.parameters()), next(model.encoder.parameters()))


def one_step(group: Group, name: str) -> dict[str, float]:
    from segformer_spark.config.batch import plan_batches
    from segformer_spark.engine.engine import Engine
    from segformer_spark.losses.build import build_loss

    micro = 4 // group.world_size
    overrides = [
        "training.loss.type=ce",
        f"training.batch_size={micro}",
        "deepspeed.zero_stage=1",
        f"model.name={name}",
    ]
    settings = load_config(overrides=[*overrides, "model.pretrained=none"]).config
    plan = plan_batches(settings.training, group.world_size)
    drawn = {"dropout": 0.0, "drop_path": 0.0} if name == "segformer" else {}
    model = small(name, **drawn)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = build_loss(settings.training.loss, NUM_CLASSES, 255, group.differentiable_sum)
    engine = Engine(model, loss, settings, plan, group)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, NUM_CLASSES, (4, 64, 64), generator=generator).to(torch.uint8)
    own = slice(group.rank * micro, (group.rank + 1) * micro)
    engine.set_lr(1e-3)
    result = engine.train_step([TrainBatch(images[own], labels[own])], 0)
    moved = sum(not torch.equal(before[n], p.detach()) for n, p in engine.model.named_parameters())
    assert result.grad_norm is not None
    return {"loss": result.loss, "norm": result.grad_norm, "moved": moved / len(before)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("segformer", "unet", "vit") else [pytest.mark.sweep]) for name in MODELS],
)
def test_a_step_under_zero_1_is_that_of_the_whole_batch(name: str) -> None:
    """Batch norm in encoder and head counts all ranks' images: one and two ranks take the same step."""
    one, two = run_on_ranks(1, one_step, name)[0], run_on_ranks(2, one_step, name)[0]
    assert one["moved"] > 0.98
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["norm"] == pytest.approx(one["norm"], rel=2e-2)


def num_parameters(name: str, num_classes: int, encoder: str | None = None) -> int:
    with torch.device("meta"):
        model = build_model(config(name, encoder=encoder), ["x"] * num_classes, seed=0, image_size=(512, 512))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "encoder", "num_classes", "expected"),
    [
        ("deeplabv3plus", "resnet50", 21, 26_682_725),
        ("deeplabv3plus", "resnet101", 13, 45_672_797),
        ("deeplabv3", "resnet50", 13, 41_999_962),
        ("deeplabv3", "resnet101", 13, 60_992_090),
        ("unet", "resnet50", 21, 32_524_005),
        ("fcn", "resnet50", 3, 32_947_779),
    ],
)
def test_parameters_are_those_of_the_studies(name: str, encoder: str, num_classes: int, expected: int) -> None:
    assert num_parameters(name, num_classes, encoder) == expected


def test_sizes_that_the_studies_give_in_round_numbers() -> None:
    assert num_parameters("vit", 21, "vit_base_patch16_224") == pytest.approx(92e6, rel=0.01)
    backbone = timm.create_model("hiera_base_224", pretrained=False, features_only=True)
    with torch.device("meta"):
        model = build_model(config("hiera", encoder="hiera_base_224"), NAMES, seed=0, image_size=(224, 224))
    assert sum(p.numel() for p in model.encoder.parameters()) == sum(p.numel() for p in backbone.parameters())
    assert sum(p.numel() for p in backbone.parameters()) == 50_754_432
    with torch.device("meta"):
        model = build_model(config("hiera", encoder="hiera_small_224"), NAMES, seed=0, image_size=(224, 224))
    assert sum(p.numel() for p in model.encoder.parameters()) == pytest.approx(35e6, rel=0.03)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("unet", lambda: smp.Unet("resnet18", encoder_weights=None, classes=NUM_CLASSES)),
        ("deeplabv3plus", lambda: smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=NUM_CLASSES)),
        ("fpn", lambda: smp.FPN("resnet18", encoder_weights=None, classes=NUM_CLASSES)),
        ("fcn", lambda: segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)),
        (
            "deeplabv3",
            lambda: segmentation.deeplabv3_resnet50(
                weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True
            ),
        ),
    ],
)
def test_logits_are_those_of_the_library(name: str, library: Any) -> None:
    theirs = library().eval()
    encoder = {"unet": "resnet18", "fpn": "resnet18", "deeplabv3plus": "mobilenet_v2"}.get(name)
    model = small(name, encoder=encoder).eval()
    names = model.stored_names()
    theirs.load_state_dict({names[live]: value for live, value in model.state_dict().items()})
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, own = theirs(images), model(images, with_auxiliary=True)
    if isinstance(expected, dict):
        size = (64, 96)
        auxiliary = [nn.functional.interpolate(logits, size, mode="bilinear") for logits in own[1:]]
        for ours, key in zip(auxiliary, [k for k in expected if k != "out"], strict=True):
            torch.testing.assert_close(ours, expected[key], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.full_logits(images), expected["out"], rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(own[0], expected, rtol=1e-4, atol=1e-5)


@every_model
def test_no_plain_batch_norm_is_left(name: str) -> None:
    norms = [m for m in small(name).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, CrossRankBatchNorm2d) for norm in norms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "deeplab"}, r"there is no model 'deeplab'; did you mean deeplabv3"),
        ({"name": "qqq"}, r"known: segformer, unet"),
        ({"name": "unet", "encoder": "resnet5"}, r"unet has no encoder 'resnet5'; did you mean resnet50"),
        ({"name": "hiera", "encoder": "resnet50"}, r"hiera has no encoder 'resnet50'; known: hiera_base_224"),
        ({"encoder": "resnet50"}, r"segformer has variants instead"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_architecture(ModelConfig(**changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.name=unet"], "model.pretrained ade20k is for segformer; unet starts from none"),
        (["model.name=unet", "model.pretrained=none", "model.drop_path=0.2"], "model.drop_path is for segformer"),
        (["model.name=vit", "model.pretrained=none", "hardware.compile=true"], "hardware.compile is for segformer"),
    ],
)
def test_settings_that_do_nothing_for_a_model_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=settings)


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus", "hiera"])
def test_one_image_trains_where_norms_follow_global_pooling(name: str) -> None:
    """Their norms leave statistics as they are, and of two images they are the library's again."""
    model = small(name).train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    norms = model.norms_after_global_pooling
    assert len(norms) == 1
    torch.stack([logits.square().mean() for logits in model(images[:1], with_auxiliary=True)]).sum().backward()
    (norm,) = norms
    assert norm.weight.grad is not None
    assert bool(norm.weight.grad.abs().sum() > 0)
    assert int(norm.num_batches_tracked or 0) == 0
    torch.testing.assert_close(norm.running_var, torch.ones_like(norm.weight))
    model(images)
    assert int(norm.num_batches_tracked or 0) == 1


@pytest.mark.parametrize("size", [(64, 128), (96, 40)], ids=str)
def test_hiera_is_built_for_rectangles(size: tuple[int, int]) -> None:
    """At its own size it is timm's, padded sides included."""
    model = build_model(config("hiera"), NAMES, seed=0, image_size=size).eval()
    padded = tuple(-(-side // 32) * 32 for side in size)
    assert model.position_grid() == (padded[0] // 4, padded[1] // 4) == model.position_grid(size)
    library = smp.UPerNet("tu-hiera_tiny_224", encoder_weights=None, classes=NUM_CLASSES, img_size=padded).eval()
    library.load_state_dict({model.stored_names()[name]: value for name, value in model.state_dict().items()})
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    filled = torch.nn.functional.pad(images, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    with torch.no_grad():
        torch.testing.assert_close(model.full_logits(images), library(filled)[..., : size[0], : size[1]])


def test_a_rectangles_positions_start_another_size(tmp_path: Path) -> None:
    """The card says which grid they were for: 8 x 32 and 16 x 16 are as many."""
    source = build_model(config("hiera"), NAMES, seed=0, image_size=(32, 128))
    card = untrained_card(
        ClassInfo(tuple(NAMES), ((0, 0, 0),) * NUM_CLASSES, None), model=describe_model(config("hiera"))
    )
    export_live(source, tmp_path, replace(card, image_size=(32, 128)))
    model = build_model(config("hiera", pretrained=str(tmp_path)), NAMES, seed=1, image_size=(64, 64))
    (name,) = [name for name in source.state_dict() if name.endswith("pos_embed")]
    expected = resize_grid(source.state_dict()[name], (8, 32), (16, 16))
    torch.testing.assert_close(model.state_dict()[name], expected)
    again, _ = load_model(tmp_path)
    torch.testing.assert_close(again.state_dict()[name], source.state_dict()[name])
