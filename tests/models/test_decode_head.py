"""The merged head against transformers' own, in fp64: the same function, gradients and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import SegformerForSemanticSegmentation

from segformer_spark.config.variants import VARIANTS
from segformer_spark.kernels.select import Setting
from segformer_spark.models.segformer import SegFormer, segformer_config

NAMES = ["background", "body", "panels"]


def pair(variant: str, *, whole: bool) -> tuple[SegFormer, SegformerForSemanticSegmentation]:
    """Our model and transformers', with the same random weights; only few blocks unless `whole`."""
    config = segformer_config(variant, NAMES, dropout=0.0, drop_path=0.0)
    if not whole:
        config.depths = [1, 1, 1, 1]
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(config).double()
    with torch.no_grad():
        for parameter in theirs.decode_head.parameters():
            parameter.normal_(std=0.3)  # biases and norm weights start at 0 and 1, which would hide mistakes
    return SegFormer(copy.deepcopy(theirs)), theirs


def test_the_heads_of_b2_to_b5_are_one() -> None:
    """The variants below stand for all."""
    heads = {name: (variant.hidden_sizes, variant.decoder_size) for name, variant in VARIANTS.items()}
    assert heads["b2"] == heads["b3"] == heads["b4"] == heads["b5"]


@pytest.mark.parametrize("kernels", ["cpu", "plain", "gpu"])
@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("b0", (97, 130)),
        ("b2", (64, 64)),
        *(
            pytest.param(v, s, marks=pytest.mark.sweep)
            for v, s in [("b0", (64, 64)), ("b1", (97, 130)), ("b2", (97, 130))]
        ),
    ],
)
def test_outputs_gradients_and_statistics_are_equal(variant: str, size: tuple[int, int], kernels: Setting) -> None:
    ours, theirs = pair(variant, whole=False)
    ours.use_kernels(kernels)
    ours.train()
    theirs.train()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    logits, expected = ours(images), theirs(images).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(expected)
    logits.backward(direction)
    expected.backward(direction)
    reference = dict(theirs.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in reference.values())
    for name, parameter in ours.network.named_parameters():
        torch.testing.assert_close(
            parameter.grad, reference[name].grad, rtol=1e-9, atol=1e-12 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.network.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-10, atol=1e-12)
    assert buffers["decode_head.batch_norm.num_batches_tracked"] == 1


@pytest.mark.parametrize("kernels", ["cpu", "plain", "gpu"])
@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_whole_model_in_fp32_evaluation(variant: str, kernels: Setting) -> None:
    ours, theirs = pair(variant, whole=True)
    ours.use_kernels(kernels)
    ours.float().eval()
    theirs.float().eval()
    images = torch.randn(1, 3, 96, 75)
    with torch.inference_mode():
        expected = theirs(images).logits
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_state_dict_names_are_those_of_transformers() -> None:
    ours, theirs = pair("b0", whole=True)
    assert [name.removeprefix("network.") for name in ours.state_dict()] == list(theirs.state_dict())


def test_bf16_autocast_merges_weights_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair("b0", whole=False)
    ours.float()
    head, merged = ours.network.decode_head, []
    merge = head._merged_weights
    monkeypatch.setattr(head, "_merged_weights", lambda: merged.append(merge()) or merged[-1])
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = ours(images)
    assert logits.dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in merged[0][0])
    exact = ours(images)
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()
