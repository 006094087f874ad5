"""Parameters and multiply-adds against the published tables and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SegformerForSemanticSegmentation

from segformer_spark.config.schema import ModelConfig
from segformer_spark.models.registry import MODELS
from segformer_spark.models.segformer import SegFormer, segformer_config
from segformer_spark.models.size import model_size, size_of
from segformer_spark.models.size_report import draw_sizes, size_table

ENCODER = {"b0": 3_319_392, "b1": 13_151_424, "b2": 24_196_288, "b3": 44_072_128, "b4": 60_842_688, "b5": 81_443_008}
TOTALS = {
    3: {"b0": 3_714_915, "b1": 13_678_019, "b2": 27_348_931, "b3": 47_224_771, "b4": 63_995_331, "b5": 84_595_651},
    13: {"b0": 3_717_485, "b1": 13_680_589, "b2": 27_356_621, "b3": 47_232_461, "b4": 64_003_021, "b5": 84_603_341},
    19: {"b0": 3_719_027, "b1": 13_682_131, "b2": 27_361_235, "b3": 47_237_075, "b4": 64_007_635, "b5": 84_607_955},
    21: {"b0": 3_719_541, "b1": 13_682_645, "b2": 27_362_773, "b3": 47_238_613, "b4": 64_009_173, "b5": 84_609_493},
    150: {"b0": 3_752_694, "b1": 13_715_798, "b2": 27_461_974, "b3": 47_337_814, "b4": 64_108_374, "b5": 84_708_694},
}
PAPER_G = {"b0": 8.4, "b1": 15.9, "b2": 62.3, "b3": 79.0, "b4": 95.6, "b5": 111.5}
HEAD_PERCENT = {"b0": 62, "b1": 34, "b2": 68, "b3": 53, "b4": 44, "b5": 38}


@pytest.mark.parametrize("variant", list(ENCODER))
def test_published_tables(variant: str) -> None:
    for num_classes, totals in TOTALS.items():
        size = model_size(variant, num_classes, (512, 512))
        assert size.total_params == size.trainable_params == totals[variant]
        assert size.encoder_params == ENCODER[variant]
        assert size.encoder_params + size.head_params == size.total_params
    assert size.macs / 1e9 == pytest.approx(PAPER_G[variant], abs=0.05)
    assert 100 * size.macs_head / size.macs == pytest.approx(HEAD_PERCENT[variant], abs=0.5)


@pytest.mark.parametrize(("variant", "side"), [("b0", 128), ("b2", 96), ("b0", 256)])
def test_multiply_adds_are_half_of_what_torch_counts(variant: str, side: int) -> None:
    config = segformer_config(variant, ["a", "b", "c", "d", "e"])
    config._attn_implementation = "eager"  # torch counts nothing for fused attention on CPU
    images = torch.zeros(1, 3, side, side)
    network = SegformerForSemanticSegmentation(config).eval()
    size = model_size(variant, 5, (side, side))
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert size.macs * 2 == counter.get_total_flops()
    merged = SegFormer(network).eval()
    with FlopCounterMode(display=False) as counter:
        merged(images)
    products_with_biases = 4 * config.decoder_hidden_size**2  # torch counts no matrix-vector products
    assert (size.macs_merged - products_with_biases) * 2 == counter.get_total_flops()


def test_table_json_and_figure(tmp_path) -> None:  # type: ignore[no-untyped-def]
    sizes = [model_size(variant, 19, (1024, 1024)) for variant in ("b0", "b5")]
    lines = size_table(sizes)
    assert lines[0] == "19 classes, 1024 pixels"
    assert lines[2].split()[:4] == ["segformer-b0", "3,719,027", "3.72", "3,719,027"]
    row = sizes[1].row()
    assert row["model_name"] == "segformer-b5"
    assert row["total_params_m"] == 84.61
    draw_sizes(sizes, tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").stat().st_size > 5000


def test_torchs_counter_on_the_meta_device_is_the_formula() -> None:
    """What counts the other models, on a model of which the formula is known; fused attention included."""
    with torch.device("meta"):
        network = SegformerForSemanticSegmentation(segformer_config("b0", [str(i) for i in range(150)])).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 512, 512, device="meta"))
    assert counter.get_total_flops() == 2 * model_size("b0", 150, (512, 512)).macs


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_size(name: str) -> None:
    size = size_of(ModelConfig(name=name, variant="b0", pretrained="none"), 21, (64, 64))
    assert size.total_params == size.encoder_params + size.head_params == size.trainable_params
    assert 0 < size.macs_head < size.macs
    assert size.row()["num_classes"] == 21


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_encoder_is_not_trainable(name: str) -> None:
    size = size_of(ModelConfig(name=name, variant="b0", pretrained="none", freeze_backbone=True), 21, (64, 64))
    assert (size.trainable_params, size.encoder_params) == (size.head_params, size.total_params - size.head_params)


def test_multiply_adds_of_resnet50_are_the_published_ones() -> None:
    """4.09 thousand millions at 224 x 224 with the classifier, which makes 0.002 of them."""
    size = size_of(ModelConfig(name="unet", encoder="resnet50", pretrained="none"), 21, (224, 224))
    assert (size.macs - size.macs_head) / 1e9 == pytest.approx(4.087, abs=0.005)
