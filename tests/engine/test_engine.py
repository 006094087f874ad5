from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.engine.engine import check_precision
from segformer_spark.engine.optimizer import parameter_groups
from segformer_spark.errors import ConfigError
from tests.engine.test_parity import GLOBAL_BATCH, make_engine, own_batches
from tests.ranks import Group, run_on_ranks
from tests.tiny import tiny_segformer


def test_groups_decay_matrices_only_and_multiply_the_heads_rate() -> None:
    config = load_config(overrides=["training.optimizer.head_lr_multiplier=10.0"]).config.training.optimizer
    model = tiny_segformer(["a", "b"])
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    assert set(groups) == {"encoder", "encoder_no_decay", "head", "head_no_decay"}
    for name, group in groups.items():
        vectors = name.endswith("no_decay")
        assert group["weight_decay"] == (0.0 if vectors else 0.01)
        assert all((p.ndim == 1) == vectors for p in group["params"])
        assert group["lr_multiplier"] == (10.0 if name.startswith("head") else 1.0)
    assert sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))
    frozen = tiny_segformer(["a", "b"], freeze_backbone=True)
    assert {g["name"] for g in parameter_groups(frozen, config)} == {"head", "head_no_decay"}


def one_step_lr(group: Group) -> tuple[float, float]:
    """How far the first AdamW step moves an encoder and a head bias: about the learning rate."""
    engine = make_engine(
        group, 1, overrides=("training.optimizer.head_lr_multiplier=10.0", "training.optimizer.eps=1e-12")
    )
    names = ("segformer.encoder.block.0.0.mlp.dense1.bias", "decode_head.classifier.bias")
    parameters = {engine.names[live]: parameter for live, parameter in engine.model.named_parameters()}
    before = [parameters[name].detach().clone() for name in names]
    engine.set_lr(1e-3)
    engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    return tuple(float((parameters[n].detach() - b).abs().max()) for n, b in zip(names, before, strict=True))  # type: ignore[return-value]


def test_learning_rates_reach_the_groups() -> None:
    encoder, head = run_on_ranks(1, one_step_lr)[0]
    assert encoder == pytest.approx(1e-3, rel=0.02)
    assert head == pytest.approx(1e-2, rel=0.02)


def masters(group: Group) -> bool:
    """After initialisation the fp32 masters must be the model's weights (DeepSpeed PR#762 once left them random)."""
    engine = make_engine(group, 2)
    expected = tiny_segformer(["a", "b", "c"], dropout=0.0, drop_path=0.0, seed=3).state_dict()
    state = engine.export_state()
    if state is None:
        return not group.is_main
    parameters = dict(engine.model.named_parameters())
    return all(
        torch.equal(expected[live], state.parameters[name]) for live, name in engine.names.items() if live in parameters
    )


def test_masters_equal_the_weights() -> None:
    assert run_on_ranks(2, masters) == [True, True]


def clipped(group: Group, stage: int) -> list[float] | None:
    """Weight change of one SGD-like step: with the norm clipped to c, Adam's first moment is 0.1 c at most."""
    engine = make_engine(group, stage, overrides=("training.gradient_clip=0.001",))
    result = engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    state = engine.export_state()
    if state is None:
        return None
    moments = state.moments["exp_avg"].values()
    norm = float(torch.linalg.vector_norm(torch.cat([m.flatten() for m in moments])))
    assert result.grad_norm is not None
    return [result.grad_norm, norm / 0.1]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_gradient_is_clipped_once(stage: int) -> None:
    before, after = run_on_ranks(2, clipped, stage)[0]
    assert before > 0.01, "the reported norm is that before clipping"
    assert after == pytest.approx(0.001, rel=1e-3)


def accumulated(group: Group, micro: int) -> dict[str, Any]:
    """BatchNorm in evaluation mode and cross-entropy on fully labelled images: then accumulation is exact."""
    engine = make_engine(group, 1, micro=micro, overrides=("training.loss.type=ce",))
    engine.model.network.decode_head.batch_norm.eval()
    engine.model.network.decode_head.batch_norm.train = lambda mode=True: engine.model.network.decode_head.batch_norm
    batches = own_batches(0, engine.plan, group.rank)
    for batch in batches:
        batch.masks[batch.masks == 255] = 0
    result = engine.train_step(batches, 0)
    return {"loss": result.loss, "norm": result.grad_norm}


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_accumulation_averages_micro_batches(micro: int) -> None:
    whole = run_on_ranks(1, accumulated, GLOBAL_BATCH)[0]
    parts = run_on_ranks(1, accumulated, micro)[0]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["norm"] == pytest.approx(whole["norm"], rel=1e-4)


def bf16_losses(group: Group, stage: int) -> dict[str, Any]:
    engine = make_engine(group, stage, overrides=("training.precision=bf16", "training.optimizer.lr=1e-3"))
    losses = [engine.train_step(own_batches(0, engine.plan, group.rank), s).loss for s in range(4)]
    dtypes = {str(p.dtype) for p in engine.model.parameters()} | {str(b.dtype) for b in engine.model.buffers()}
    return {"losses": losses, "dtypes": dtypes}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_trains_with_fp32_weights_and_statistics(stage: int) -> None:
    result = run_on_ranks(2, bf16_losses, stage)[0]
    assert np.isfinite(result["losses"]).all()
    assert result["losses"][-1] < result["losses"][0]
    assert result["dtypes"] == {"torch.float32", "torch.int64"}


def moments(group: Group, stage: int, limit: str) -> dict[str, Any]:
    engine = make_engine(group, stage, overrides=(f"training.gradient_clip={limit}",))
    engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    state = engine.export_state()
    assert state is not None
    return {name: value.numpy().copy() for name, value in state.moments["exp_avg"].items()}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_limit_above_the_norm_changes_nothing(stage: int) -> None:
    free, limited = (run_on_ranks(1, moments, stage, limit)[0] for limit in ("0", "1000"))
    for name, value in free.items():
        np.testing.assert_array_equal(limited[name], value)
        assert np.abs(value).max() > 0


def reduced_types(group: Group, reduce_precision: str) -> dict[str, Any]:
    """Types of the tensors that hold gradients in a step's collectives, and the update."""
    import torch.distributed as dist

    engine = make_engine(
        group, 1, overrides=("training.precision=bf16", f"training.reduce_precision={reduce_precision}")
    )
    seen: dict[str, int] = {}

    def noting(name: str) -> None:
        original = getattr(dist, name)

        def called(tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
            seen[str(tensor.dtype)] = seen.get(str(tensor.dtype), 0) + tensor.numel()
            return original(tensor, *rest, **options)

        setattr(dist, name, called)

    for name in ("all_reduce", "reduce"):
        noting(name)
    before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    moved = sum(float((p.detach() - before[n]).abs().sum()) for n, p in engine.model.named_parameters())
    return {"seen": seen, "moved": moved, "parameters": sum(p.numel() for p in engine.model.parameters())}


def test_the_type_in_which_gradients_are_averaged() -> None:
    for asked, other in (("fp32", "bf16"), ("bf16", "fp32")):
        names = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}
        for result in run_on_ranks(2, reduced_types, asked):
            assert result["seen"].get(names[asked], 0) > 0.5 * result["parameters"]
            assert result["seen"].get(names[other], 0) < 0.5 * result["parameters"]
            assert result["moved"] > 0


def local_rank_seen(group: Group) -> str:
    """With one GPU bound to each task every rank's device is number 0, whatever its local rank."""
    import dataclasses
    import os
    from unittest import mock

    class Reached(Exception):
        pass

    bound = dataclasses.replace(group, device=torch.device("cuda", 0))
    with mock.patch.object(torch.nn.Module, "to", side_effect=Reached), pytest.raises(Reached):
        make_engine(bound, 1)
    return os.environ["LOCAL_RANK"]


def test_deepspeed_is_told_the_device_and_not_the_local_rank() -> None:
    assert run_on_ranks(2, local_rank_seen) == ["0", "0"]


def loads_inductor(group: Group) -> bool:
    make_engine(group, 1)
    return "torch._inductor.compile_fx" in sys.modules


def test_an_engine_that_compiles_nothing_does_not_load_inductor() -> None:
    assert run_on_ranks(1, loads_inductor) == [False]


def dropout_losses(group: Group) -> list[float]:
    engine = make_engine(group, 1)
    engine.model.network.decode_head.dropout.p = 0.5
    for parameter_group in engine.engine.optimizer.param_groups:
        parameter_group["lr"] = 0.0
    batches = own_batches(0, engine.plan, group.rank)
    return [engine.train_step(batches, step).loss for step in (3, 3, 4)]


def test_randomness_is_a_function_of_the_step() -> None:
    first, again, other = run_on_ranks(1, dropout_losses)[0]
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("overrides", "device", "message"),
    [
        (["training.precision=fp16"], "cpu", "fp16 needs a GPU"),
        (["training.precision=fp16", "deepspeed.zero_stage=0"], "cuda", "zero_stage 1 or 2"),
    ],
)
def test_impossible_precisions_are_refused(overrides: list[str], device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_precision(load_config(overrides=overrides).config, torch.device(device))


def test_emulated_bf16_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100 computes it by way of fp32, slower than fp32 itself."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    config = load_config(overrides=["training.precision=bf16"]).config
    with pytest.raises(ConfigError, match="this GPU has no bf16 arithmetic"):
        check_precision(config, torch.device("cuda"))


def is_read_at_once(group: Group) -> bool:
    engine = make_engine(group, 1)
    return engine.launch_step(own_batches(0, engine.plan, group.rank), 0).is_finished


def test_the_numbers_of_a_step_on_the_cpu_are_there_when_it_is_launched() -> None:
    """Read a step late, the time between two readings would not be that of a step."""
    assert run_on_ranks(2, is_read_at_once) == [True, True]
