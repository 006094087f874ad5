from __future__ import annotations

import pytest
import torch

from segformer_spark.models.segformer import build_segformer, portable_names

# Study A and C: base + C x (D + 1).
COUNTS = {
    "b0": {3: 3_714_915, 13: 3_717_485, 19: 3_719_027, 21: 3_719_541, 150: 3_752_694},
    "b1": {3: 13_678_019, 150: 13_715_798},
    "b2": {3: 27_348_931, 150: 27_461_974},
    "b3": {3: 47_224_771, 150: 47_337_814},
    "b4": {3: 63_995_331, 150: 64_108_374},
    "b5": {3: 84_595_651, 150: 84_708_694},
}
ENCODERS = {"b0": 3_319_392, "b1": 13_151_424, "b2": 24_196_288, "b3": 44_072_128, "b4": 60_842_688, "b5": 81_443_008}


@pytest.mark.parametrize(("variant", "classes"), [(v, c) for v, counts in COUNTS.items() for c in counts])
def test_parameter_counts(variant: str, classes: int) -> None:
    with torch.device("meta"):
        model = build_segformer(variant, [str(i) for i in range(classes)])
    assert sum(p.numel() for p in model.parameters()) == COUNTS[variant][classes]
    assert sum(p.numel() for p in model.encoder.parameters()) == ENCODERS[variant]


def test_freeze_backbone() -> None:
    model = build_segformer("b0", ["a", "b"], freeze_backbone=True).train()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.startswith("network.decode_head.") for name in trainable)
    assert not model.encoder.training
    assert model.network.decode_head.training
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head_parameters())


def test_dropout_and_drop_path_are_set() -> None:
    model = build_segformer("b0", ["a", "b"], dropout=0.25, drop_path=0.3)
    rates = [getattr(m, "drop_prob", 0.0) for m in model.modules() if type(m).__name__ == "SegformerDropPath"]
    assert max(rates) == pytest.approx(0.3)
    assert model.network.decode_head.dropout.p == 0.25


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (build_segformer("b0", ["a", "b"], seed=4).state_dict() for _ in range(2))
    other = build_segformer("b0", ["a", "b"], seed=5).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_portable_names_are_those_of_the_published_files() -> None:
    names = portable_names(build_segformer("b0", ["a", "b"]))
    assert len(set(names.values())) == len(names)
    published = set(names.values())
    assert {
        "segformer.encoder.patch_embeddings.0.proj.weight",
        "segformer.encoder.block.0.0.attention.self.query.weight",
        "segformer.encoder.block.3.1.mlp.dense2.bias",
        "segformer.encoder.layer_norm.3.bias",
        "decode_head.linear_c.3.proj.weight",
        "decode_head.linear_fuse.weight",
        "decode_head.batch_norm.running_var",
        "decode_head.classifier.bias",
    } <= published
