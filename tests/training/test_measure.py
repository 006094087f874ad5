from __future__ import annotations

import pytest
import torch

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.load import load_config
from segformer_spark.config.schema import LossConfig
from segformer_spark.losses.build import build_loss
from segformer_spark.models.segformer import build_segformer
from segformer_spark.training.measure import PassCost, estimate_memory, measure_pass, measured_parts, step_seconds
from tests.ranks import Group, run_on_ranks

COST = PassCost(
    num_images=2,
    seconds=0.8,
    encoder_seconds=0.2,
    encoder_bytes=700,
    head_bytes=300,
    workspace_bytes=50,
    library_bytes=7,
)
CPU = torch.device("cpu")


def cost(num_images: int, side: int = 64, *, recompute: bool = False) -> PassCost:
    model = build_segformer("b0", ["a", "b"], seed=0)
    if recompute:
        model.checkpoint_activations()
    loss = build_loss(LossConfig(), 2, 255)
    out = measure_pass(model, loss, num_images, (side, side), CPU)
    assert all(p.grad is None for p in model.parameters())
    return out


def test_activations_grow_with_images_and_pixels() -> None:
    one, two, four, large = cost(1, 128), cost(2, 128), cost(4, 128), cost(1, 256)
    for part in ("encoder_bytes", "head_bytes"):
        kept = [getattr(c, part) for c in (one, two, four, large)]
        per_image = kept[1] - kept[0]
        assert per_image > 0.6 * kept[0], "what does not grow, such as merged weights, is little"
        assert kept[2] - kept[1] == pytest.approx(2 * per_image, rel=0.05)
        assert kept[3] == pytest.approx(4 * kept[0], rel=0.5)
    assert one.seconds > one.encoder_seconds > 0


def test_recomputation_keeps_less() -> None:
    assert cost(1, 128, recompute=True).encoder_bytes < 0.4 * cost(1, 128).encoder_bytes


def test_a_layer_keeps_what_it_is_known_to_keep() -> None:
    """A linear layer keeps its input, a square its operand: known to the byte."""

    class Tiny(torch.nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 3))

        def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.einsum("bchw,kc->bkhw", images, self.weight)]

        def recomputed_blocks(self) -> list[torch.nn.Module]:
            return []

        def decode_all(self, features: list[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
            return features

    class Squares:
        def of_outputs(self, outputs: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
            return outputs[0].square().sum()

    cost = measure_pass(Tiny(), Squares(), 5, (8, 8), CPU)  # type: ignore[arg-type]
    images, logits = 5 * 3 * 8 * 8 * 4, 5 * 2 * 8 * 8 * 4
    assert (cost.encoder_bytes, cost.head_bytes) == (images, logits)


def test_states_are_divided_as_zero_divides_them() -> None:
    model = build_segformer("b0", ["a", "b"], seed=0)
    weights = 4 * sum(p.numel() for p in model.parameters())
    for stage, gradients, optimizer in ((0, 1.0, 2.0), (1, 1.0, 3 / 4), (2, 1 / 4, 3 / 4)):
        config = load_config(overrides=[f"deepspeed.zero_stage={stage}", "training.ema.decay=0.99"]).config
        memory = estimate_memory(model, config, BatchPlan(8, 2, 4), COST)
        assert memory.parameters == memory.average == weights
        assert memory.gradients == pytest.approx(gradients * weights, rel=1e-6)
        assert memory.optimizer == pytest.approx(optimizer * weights, rel=1e-6)
        assert memory.activations == 4000, "eight images, two of which were measured"
        assert memory.workspace == 200
        assert memory.libraries == 7
        assert memory.bucket == (40_000_000 if stage else 0), "ten million values, see ds_configs"
        assert memory.joined_head == 1200, "the head holds the other micro-batch too"
        assert memory.total == sum(
            (
                memory.parameters,
                memory.gradients,
                memory.optimizer,
                memory.average,
                memory.activations,
                memory.joined_head,
                memory.workspace,
                memory.libraries,
                memory.bucket,
            )
        )
    mean = load_config(overrides=["training.accumulation=mean"]).config
    assert estimate_memory(model, mean, BatchPlan(8, 2, 4), COST).joined_head == 0


def test_time_of_a_step() -> None:
    config = load_config().config
    assert step_seconds(config, BatchPlan(8, 1, 4), COST) == pytest.approx(0.8 * 4)
    assert step_seconds(config, BatchPlan(8, 3, 4), COST) == pytest.approx((0.8 + 0.2) * 4 * 3), "one more encoder pass"
    mean = load_config(overrides=["training.accumulation=mean"]).config
    assert step_seconds(mean, BatchPlan(8, 3, 4), COST) == pytest.approx(0.8 * 4 * 3)


def estimated_mib(group: Group) -> float:
    overrides = ["model.variant=b0", "data.image_size=256", "training.batch_size=4", "deepspeed.zero_stage=0"]
    config = load_config(overrides=overrides).config
    model, loss = measured_parts(config, ["a", "b", "c"])
    cost = measure_pass(model, loss, 1, (256, 256), CPU)
    assert cost.workspace_bytes > 0
    assert cost.library_bytes > 0
    return estimate_memory(model, config, BatchPlan(4, 1, 1), cost).total / 2**20


@pytest.mark.sweep
def test_the_estimate_is_near_the_highest_memory_of_a_training() -> None:
    """Of a process of its own, as `bench train` measures it; 15 % are promised for 512 pixels (docs/performance.md)."""
    from segformer_spark.bench.interleaved import Benchmark, compare
    from segformer_spark.bench.workload import OURS, ModelSpec

    spec = ModelSpec(kind="train", variant="b0", image_size=256, batch=4, threads=1)
    (row,) = compare(Benchmark("", {OURS: spec}, 4), 2)
    if row.memory_mib is None:
        pytest.skip("this system does not tell a process's highest memory")
    assert run_on_ranks(1, estimated_mib)[0] == pytest.approx(row.memory_mib, rel=0.2)
