"""Activation checkpointing, torch.compile and layer-wise learning rates."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segformer_spark.config.load import load_config
from segformer_spark.config.variants import VARIANTS
from segformer_spark.data.transforms import normalize_images
from segformer_spark.distributed.devices import use_deterministic_algorithms
from segformer_spark.engine.engine import graph_breaks
from segformer_spark.engine.optimizer import parameter_groups
from segformer_spark.kernels.select import Setting
from segformer_spark.models.mix_transformer import encode
from segformer_spark.models.segformer import blocks_from_head, build_segformer, portable_names
from tests.engine.test_parity import global_batch, make_engine, own_batches
from tests.ranks import Group, run_on_ranks
from tests.tiny import TINY, tiny_segformer
from tests.training.short_run import short_run


@pytest.mark.parametrize("variant", ["b0", "b3"])
def test_depth_counts_blocks_from_the_head(variant: str) -> None:
    model = build_segformer(variant, ["a", "b"], seed=0)
    depths = VARIANTS[variant].depths
    total = sum(depths)
    for live, stored in portable_names(model).items():
        distance = blocks_from_head(live, depths)
        assert distance == blocks_from_head(stored, depths), "live and stored names agree"
        if stored.startswith("decode_head"):
            assert distance == 0
        elif stored.startswith("segformer.encoder.block."):
            stage, block = (int(part) for part in stored.split(".")[3:5])
            assert distance == total - sum(depths[:stage]) - block
        elif "patch_embeddings" in stored:
            assert distance == total - sum(depths[: int(stored.split(".")[3])])
        else:
            assert distance == total - sum(depths[: int(stored.split(".")[3]) + 1]) + 1


def test_learning_rates_fall_with_depth() -> None:
    config = load_config(
        overrides=["training.optimizer.layer_decay=0.5", "training.optimizer.head_lr_multiplier=10.0"]
    ).config.training.optimizer
    model = tiny_segformer(["a", "b"])
    groups = parameter_groups(model, config)
    assert {g["lr_multiplier"] for g in groups} == {10.0, *(0.5**n for n in range(1, 5))}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    first = next(g for g in groups if g["name"] == "encoder_minus_4")
    names = {n for n, p in model.named_parameters() if any(p is q for q in first["params"])}
    depths = TINY.depths
    assert names == {n for n, p in model.named_parameters() if p.ndim > 1 and blocks_from_head(n, depths) == 4}


def step(group: Group, *overrides: str) -> dict[str, Any]:
    engine = make_engine(group, 1, overrides=overrides)
    results = [engine.train_step(own_batches(s, engine.plan, group.rank), s) for s in range(2)]
    return {"losses": [r.loss for r in results], "norms": [r.grad_norm for r in results]}


def test_recomputed_activations_change_nothing() -> None:
    plain = run_on_ranks(1, step)[0]
    recomputed = run_on_ranks(1, step, "training.activation_checkpointing=true")[0]
    assert recomputed == plain


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_arithmetic_of_gpus_trains_alike(world_size: int) -> None:
    """And it is what ran: it sums in another order."""
    usual = run_on_ranks(1, step)[0]
    for kernels in ("plain", "gpu"):
        found = run_on_ranks(world_size, step, f"hardware.kernels={kernels}")
        assert all(one == found[0] for one in found)
        np.testing.assert_allclose(found[0]["losses"], usual["losses"], rtol=1e-5)
        np.testing.assert_allclose(found[0]["norms"], usual["norms"], rtol=1e-4)
        assert found[0] != usual


@pytest.mark.parametrize("kernels", ["cpu", "plain", "gpu"])
def test_recomputation_drops_the_same_paths(kernels: Setting) -> None:
    losses, gradients = [], []
    for recompute in (False, True):
        model = tiny_segformer(["a", "b"], drop_path=0.8, seed=0).train()
        model.use_kernels(kernels)
        if recompute:
            model.checkpoint_activations()
            assert len(model.recomputed_blocks()) == 4
        torch.manual_seed(5)
        loss = model(torch.ones(4, 3, 64, 64)).square().mean()
        loss.backward()
        losses.append(float(loss))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert losses[0] == losses[1]
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)


@pytest.mark.sweep
def test_the_compiled_encoder_has_no_graph_break() -> None:
    import torch._dynamo as dynamo

    model = tiny_segformer(["a", "b", "c"], drop_path=0.1, seed=0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for training in (False, True):  # stochastic depth is in the graph of training
        dynamo.reset()
        model.train(training)
        explanation = dynamo.explain(encode)(model.encoder, images)
        assert explanation.graph_break_count == 0, explanation.break_reasons


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.sweep
def test_the_gradients_of_a_compiled_encoder_agree() -> None:
    expected, found = (run_on_ranks(1, gradients, compiled, timeout=400)[0] for compiled in (False, True))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-4, err_msg=name)


def gradients(group: Group, compiled: bool) -> dict[str, NDArray[np.float32]]:
    """The gradient of every parameter of two stages, with and without reduced keys: half the kernels to build."""
    model = tiny_segformer(["a", "b", "c"], dropout=0.0, drop_path=0.0, seed=3).train()
    model.encoder.stages = torch.nn.ModuleList([model.encoder.stages[0], model.encoder.stages[3]])
    if compiled:
        model.compile_encoder(by_block=False)
    images = normalize_images(global_batch(0).images[:2])
    torch.stack([maps.square().sum() for maps in model._encode_on_cpu(model.encoder, images)]).sum().backward()
    assert graph_breaks() == 0
    return {n: p.grad.numpy().copy() for n, p in model.encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kernels", "setting"), [pytest.param(*own, marks=pytest.mark.sweep) for own in (("cpu", "true"), ("gpu", "auto"))]
)
def test_a_compiled_encoder_trains_with_exact_accumulation(kernels: Setting, setting: str) -> None:
    """With and without gradients in turn. The graphs are run as traced: no C++ compiler, a second instead of ten."""
    usual = f"hardware.kernels={kernels}"
    eager, compiled = (
        run_on_ranks(1, traced_steps, (usual, *more))[0] for more in ((), (f"hardware.compile={setting}",))
    )
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernels", "drop_path", "graphs"),
    [
        pytest.param("cpu", 0.0, 4, marks=pytest.mark.sweep),
        ("plain", 0.0, 8),
        pytest.param("gpu", 0.1, 9, marks=pytest.mark.sweep),
    ],
)
def test_equal_blocks_are_compiled_once(kernels: Setting, drop_path: float, graphs: int) -> None:
    """In the GPU's arithmetic a stage's first block adds no branch, and the network's first keeps its own always."""
    assert run_on_ranks(1, compilations, kernels, drop_path)[0] == graphs


def compilations(group: Group, kernels: Setting, drop_path: float) -> int:
    """How many graphs four blocks in each of four stages need, forward and backward once."""
    graphs: list[Any] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    patched: Any = torch
    patched.compile = functools.partial(torch.compile, backend=counting, fullgraph=True)
    model = build_segformer(replace(TINY, depths=(4, 4, 4, 4)), ["a", "b", "c"], drop_path=drop_path, seed=0).train()
    model.use_kernels(kernels)
    model.compile_encoder(by_block=True)
    loss: Any = model(normalize_images(global_batch(0).images)).square().mean()
    loss.backward()
    return len(graphs)


def traced_steps(group: Group, overrides: tuple[str, ...]) -> list[float]:
    patched: Any = torch
    patched.compile = functools.partial(torch.compile, backend="aot_eager")
    engine = make_engine(group, 1, micro=2, overrides=overrides)
    losses = [engine.train_step(own_batches(s, engine.plan, group.rank), s).loss for s in range(2)]
    assert graph_breaks() == 0
    return losses


def deterministic(group: Group, root: str, path: str) -> tuple[list[float], bool]:
    """With what `train` does for hardware.deterministic before the ranks work."""
    use_deterministic_algorithms()
    losses = short_run(group, root, path, ("hardware.deterministic=true", "training.epochs=1"))
    return losses, torch.are_deterministic_algorithms_enabled()


def test_deterministic_mode_repeats_itself(spark_root: Path, tmp_path: Path) -> None:
    runs = [run_on_ranks(2, deterministic, str(spark_root), str(tmp_path / name))[0] for name in ("a", "b")]
    assert runs[0] == runs[1]
    assert runs[0][1], "the switch is set"
