from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.deepspeed import deepspeed_config
from segformer_spark.config.load import load_config
from segformer_spark.errors import ConfigError


def merged(*overrides: str) -> dict[str, Any]:
    config = load_config(overrides=overrides).config
    return deepspeed_config(config, BatchPlan(4, 2, 3))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stage_selects_the_file(stage: int) -> None:
    settings = merged(f"deepspeed.zero_stage={stage}")
    assert settings["zero_optimization"]["stage"] == stage
    assert not settings["zero_optimization"].get("overlap_comm", False)
    assert settings["train_batch_size"] == 24
    assert settings["gradient_clipping"] == 0.0, "the engine clips"
    assert merged(f"deepspeed.zero_stage={max(stage, 1)}", "training.precision=fp16")["gradient_clipping"] == 1.0


def test_precision() -> None:
    assert "torch_autocast" not in merged()
    autocast = {"enabled": True, "dtype": "bfloat16"}
    assert merged("training.precision=bf16", "training.reduce_precision=bf16")["torch_autocast"] == autocast
    in_fp32 = {**autocast, "lower_precision_safe_modules": []}
    assert merged("training.precision=bf16")["torch_autocast"] == in_fp32
    assert merged("training.precision=fp16")["fp16"]["enabled"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage is 2"),
        ({"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}, "'gradient_clipping' belongs to"),
        ({"zero_optimization": [1]}, r"zero_optimization is \[1\]; it is a JSON object"),
        ({"zero_optimization": {"stage": "1"}}, "zero_optimization.stage is '1'; it is 0, 1 or 2"),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}},
            "reduce_bucket_size is 'auto'; it is a num",
        ),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer is not supp"),
        ({"zero_optimization": {"stage": 1}, "train_batch_size": 8}, "'train_batch_size' belongs to"),
        ([], "is a JSON object"),
    ],
)
def test_contradictions_are_errors(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        merged(f"deepspeed.config={path}")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        merged(f"deepspeed.config={tmp_path / 'no.json'}")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match=r"bad\.json:1"):
        merged(f"deepspeed.config={tmp_path / 'bad.json'}")
    (tmp_path / "latin.json").write_bytes('{"comment": "é"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.json: the DeepSpeed configuration is not text in UTF-8"):
        merged(f"deepspeed.config={tmp_path / 'latin.json'}")
