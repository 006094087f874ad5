"""`hardware.cuda_graphs` with a stand-in for CUDA's recorder, on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.load import load_config
from segformer_spark.engine import cuda_graphs
from segformer_spark.engine.cuda_graphs import obstacle
from segformer_spark.engine.engine import Engine
from segformer_spark.losses.build import build_loss
from segformer_spark.models.segformer import SegFormer
from segformer_spark.run.console import logger
from tests.engine.recorded import record
from tests.engine.test_parity import own_batches
from tests.ranks import Group, run_on_ranks
from tests.tiny import tiny_segformer

GRAPHED = ("hardware.cuda_graphs=auto",)


def make_engine(group: Group, overrides: tuple[str, ...], micro: int = 2) -> Engine:
    config = load_config(overrides=["data.image_size=64", "training.optimizer.lr=1e-3", *overrides]).config
    model = tiny_segformer(["a", "b", "c"], dropout=0.1, drop_path=0.3, seed=3)
    loss = build_loss(config.training.loss, 3, 255, group.differentiable_sum)
    accumulation = 6 // (micro * group.world_size)
    return Engine(model, loss, config, BatchPlan(micro, accumulation, group.world_size), group)


@contextmanager
def messages() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def steps(group: Group, overrides: tuple[str, ...], micro: int) -> dict[str, Any]:
    """Three steps; then a validation's images, and images of another size, twice."""
    with pytest.MonkeyPatch.context() as patch, messages() as said:
        patch.setattr(cuda_graphs, "capture_for", lambda device: record)
        engine = make_engine(group, overrides, micro)
        losses = [engine.train_step(own_batches(step, engine.plan, group.rank), step).loss for step in range(3)]
        model = engine.model
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        model.eval()
        with torch.no_grad():
            evaluated = model(images)
        model.train()
        for _ in range(2):
            model(torch.cat([images, images]))
    state = {name: value.numpy() for name, value in engine.model.state_dict().items()}
    return {"losses": losses, "weights": state, "evaluated": evaluated.numpy(), "said": said}


@pytest.mark.parametrize("kernels", [pytest.param("plain", marks=pytest.mark.sweep), "gpu"])
@pytest.mark.parametrize(
    ("world", "precision", "stage"),
    [(1, "fp32", 1), *(pytest.param(*one, marks=pytest.mark.sweep) for one in [(2, "bf16", 2), (3, "fp32", 0)])],
)
def test_replayed_stages_train_bit_by_bit_alike(kernels: str, world: int, precision: str, stage: int) -> None:
    usual = (f"hardware.kernels={kernels}", f"training.precision={precision}", f"deepspeed.zero_stage={stage}")
    micro = 6 // world
    eager, graphed = (run_on_ranks(world, steps, (*usual, *more), micro)[0] for more in ((), GRAPHED))
    assert graphed["losses"] == eager["losses"]
    assert len(set(graphed["losses"])) == 3
    for name, value in eager["weights"].items():
        np.testing.assert_array_equal(graphed["weights"][name], value, err_msg=name)
    np.testing.assert_array_equal(graphed["evaluated"], eager["evaluated"])
    assert not any("graph" in line for line in eager["said"])
    own = [line for line in graphed["said"] if "graph" in line.lower()]
    assert len(own) == 2, "recorded, and once for the other shape"
    assert f"CUDA graphs for images of ({micro}, 3, 64, 64)" in own[0]
    assert "others, the first of them (4, 64, 64, 3) in float32, run eagerly" in own[1]


@pytest.mark.sweep
def test_with_zero_on_three_ranks_only_the_order_of_sums_differs() -> None:
    """All gradients of a stage come at once, so that DeepSpeed's buckets hold them in another order."""
    usual = ("hardware.kernels=plain", "deepspeed.zero_stage=2")
    eager, graphed = (run_on_ranks(3, steps, (*usual, *more), 2)[0] for more in ((), GRAPHED))
    np.testing.assert_allclose(graphed["losses"], eager["losses"], rtol=1e-6)
    for name, value in eager["weights"].items():
        np.testing.assert_allclose(graphed["weights"][name], value, rtol=1e-3, atol=3e-5, err_msg=name)


def in_another_type(group: Group) -> tuple[list[str], bool]:
    """Images of training's shape without its autocast."""
    with pytest.MonkeyPatch.context() as patch, messages() as said:
        patch.setattr(cuda_graphs, "capture_for", lambda device: record)
        engine = make_engine(group, ("hardware.kernels=plain", "training.precision=bf16", *GRAPHED), 6)
        images = torch.randn(6, 3, 64, 64)
        maps = engine.model.train().encode(images)
    return said, maps[0].dtype == torch.float32


def test_images_in_another_type_run_eagerly() -> None:
    said, wide = run_on_ranks(1, in_another_type)[0]
    assert wide
    assert any("(6, 64, 64, 3) in bfloat16; others, the first of them (6, 64, 64, 3) in float32" in s for s in said)


def refused_on_one_rank(group: Group) -> tuple[list[str], bool, float]:
    def failing(stages: Any, examples: Any) -> Any:
        if group.rank == 1:
            raise RuntimeError("operation not permitted when stream is capturing\nlong trace")
        return record(stages, examples)

    with pytest.MonkeyPatch.context() as patch, messages() as said:
        patch.setattr(cuda_graphs, "capture_for", lambda device: failing)
        engine = make_engine(group, ("hardware.kernels=plain", *GRAPHED), 3)
        loss = engine.train_step(own_batches(0, engine.plan, group.rank), 0).loss
    model = engine.model
    assert isinstance(model, SegFormer)
    return said, model._graphed is None, loss


def test_what_one_rank_cannot_record_runs_eagerly_on_all() -> None:
    results = run_on_ranks(2, refused_on_one_rank)
    for said, eager, _ in results:
        assert eager
        reason = "rank 1 could not record them: operation not permitted when stream is capturing"
        assert f"hardware.cuda_graphs: no CUDA graphs in this run: {reason}" in said
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize(
    ("overrides", "accumulation", "device", "expected"),
    [
        ((), 1, "cuda", None),
        ((), 1, "cpu", "there are none on a cpu device"),
        ((), 2, "cuda", "training.accumulation_steps is 2"),
        (("hardware.kernels=cpu",), 1, "cuda", "hardware.kernels is cpu"),
        (("training.activation_checkpointing=true",), 1, "cuda", "activation_checkpointing"),
        (("model.freeze_backbone=true",), 1, "cuda", "freeze_backbone"),
    ],
)
def test_obstacles(overrides: tuple[str, ...], accumulation: int, device: str, expected: str | None) -> None:
    config = load_config(overrides=list(overrides)).config
    found = obstacle(config, BatchPlan(2, accumulation, 1), torch.device(device))
    assert (found is None) if expected is None else (found is not None and expected in found)


def test_on_a_cpu_the_reason_is_said_and_training_goes_on() -> None:
    said, loss = run_on_ranks(1, on_cpu)[0]
    assert "hardware.cuda_graphs: no CUDA graphs in this run: there are none on a cpu device" in said
    assert np.isfinite(loss)


def on_cpu(group: Group) -> tuple[list[str], float]:
    with messages() as said:
        engine = make_engine(group, GRAPHED, 6)
    return said, engine.train_step(own_batches(0, engine.plan, group.rank), 0).loss


class Waiting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.weight * float(values.sum())


class Drawing(Waiting):
    def forward(self, values: Tensor) -> Tensor:
        return values * self.weight * torch.rand(3)


@pytest.mark.parametrize(("stage", "message"), [(Waiting, "the host waits"), (Drawing, "draws random numbers")])
def test_the_stand_in_refuses_what_a_capture_cannot_have(stage: type[nn.Module], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        record((stage(),), ((torch.ones(3),),))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.weight


def test_a_second_micro_batch_would_overwrite_the_gradients_of_the_first() -> None:
    """Why accumulation is an obstacle: the gradient is the replay's own memory."""
    stage = Scaled()
    (replayed,) = record((stage,), ((torch.ones(3),),))
    for factor in (1.0, 10.0):
        replayed(torch.full((3,), factor)).sum().backward()
    assert stage.weight.grad is not None
    assert stage.weight.grad.tolist() != [11.0] * 3
