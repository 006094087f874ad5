"""The DeepSpeed configuration: what only DeepSpeed owns from JSON, all else from the YAML.

See https://www.deepspeed.ai/docs/config-json/. A value that both would set is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.config.schema import Config
from segformer_spark.errors import ConfigError

_OWNED_BY_YAML = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.batch_size",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "gradient_clipping": "training.gradient_clip",
    "optimizer": "training.optimizer",
    "scheduler": "training.scheduler",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "torch_autocast": "training.precision",
}


def deepspeed_file(config: Config) -> Path:
    """The JSON file that `deepspeed.zero_stage` or `deepspeed.config` selects."""
    if config.deepspeed.config is not None:
        return Path(config.deepspeed.config)
    return PROJECT_ROOT / "ds_configs" / f"zero{config.deepspeed.zero_stage}.json"


def deepspeed_config(config: Config, plan: BatchPlan) -> dict[str, Any]:
    """Merge the JSON file with the YAML's batch, clipping and precision.

    Raises:
        ConfigError: the file is missing, not JSON, names another stage, or sets what the YAML owns.
    """
    path = deepspeed_file(config)
    merged = _read(path)
    for key, owner in _OWNED_BY_YAML.items():
        if key in merged:
            raise ConfigError(f"{path}: {key!r} belongs to {owner} of the YAML; remove it from this file")
    stage = stage_of(path)
    if stage != config.deepspeed.zero_stage:
        raise ConfigError(
            f"{path}: zero_optimization.stage is {stage}, deepspeed.zero_stage is {config.deepspeed.zero_stage}; "
            "make them equal"
        )
    precision = config.training.precision
    merged |= {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_batch_size": plan.global_batch,
        "gradient_clipping": config.training.gradient_clip,
    }
    if precision == "bf16":
        # Parameters stay fp32; the bf16 section would turn them into bf16.
        merged["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif precision == "fp16":
        merged["fp16"] = {"enabled": True, "auto_cast": True, "loss_scale": 0, "initial_scale_power": 16}
    return merged


def stage_of(path: Path) -> int:
    """The ZeRO stage that a DeepSpeed configuration names; 0 without one."""
    stage: int = _read(path).get("zero_optimization", {}).get("stage", 0)
    return stage


def reduce_bucket_size(config: Config) -> int:
    """Values that ZeRO reduces at a time; DeepSpeed's own default without a setting."""
    return int(_read(deepspeed_file(config)).get("zero_optimization", {}).get("reduce_bucket_size", 500_000_000))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: the DeepSpeed configuration cannot be read: {error}. Set deepspeed.config."
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: this is not valid JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a DeepSpeed configuration is a JSON object")
    return content
