"""The DeepSpeed configuration: what only DeepSpeed owns from JSON, all else from the YAML.

See https://www.deepspeed.ai/docs/config-json/. A value that both would set is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.load import project_folder
from segformer_spark.config.schema import Config
from segformer_spark.config.typed_file import read_text
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

_OFFLOADING = ("offload_optimizer", "offload_param", "cpu_offload")
_DEFAULT_BUCKET = 500_000_000


def deepspeed_file(config: Config) -> Path:
    """The JSON file that `deepspeed.zero_stage` or `deepspeed.config` selects."""
    if config.deepspeed.config is not None:
        return Path(config.deepspeed.config)
    return project_folder("ds_configs") / f"zero{config.deepspeed.zero_stage}.json"


def deepspeed_config(config: Config, plan: BatchPlan) -> dict[str, Any]:
    """Merge the JSON file with the YAML's batch, clipping and precision.

    Raises:
        ConfigError: the file is missing, not JSON, names another stage, sets what the YAML owns, or
            what is not supported.
    """
    path = deepspeed_file(config)
    merged = _read(path)
    for key, owner in _OWNED_BY_YAML.items():
        if key in merged:
            raise ConfigError(f"{path}: {key!r} belongs to {owner} of the YAML; remove it from this file")
    stage = _stage(path, merged)
    _bucket_size(path, merged)
    if stage != config.deepspeed.zero_stage:
        raise ConfigError(
            f"{path}: zero_optimization.stage is {stage}, deepspeed.zero_stage is {config.deepspeed.zero_stage}; "
            "make them equal"
        )
    precision = config.training.precision
    if stage and config.training.optimizer.type == "sgd":
        merged["zero_allow_untested_optimizer"] = True  # tests/engine/test_optimizers.py has tested it
    merged |= {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_batch_size": plan.global_batch,
        "gradient_clipping": config.training.gradient_clip if precision == "fp16" else 0.0,
    }
    if stage and precision != "fp16":
        # engine/clipping.py has both, without reading the host.
        merged["zero_optimization"] = {**merged["zero_optimization"], "compute_grad_norm": False}
    if precision == "bf16":
        # Parameters stay fp32; the bf16 section would turn them into bf16.
        merged["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        if config.training.reduce_precision == "fp32":
            # Gradients of these modules' parameters are reduced in bf16, whatever communication_data_type says.
            merged["torch_autocast"]["lower_precision_safe_modules"] = []
    elif precision == "fp16":
        merged["fp16"] = {"enabled": True, "auto_cast": True, "loss_scale": 0, "initial_scale_power": 16}
    return merged


def stage_of(path: Path) -> int:
    """The ZeRO stage that a DeepSpeed configuration names; 0 without one."""
    return _stage(path, _read(path))


def _stage(path: Path, content: dict[str, Any]) -> int:
    stage = _zero_section(path, content).get("stage", 0)
    if not isinstance(stage, int):
        raise ConfigError(f"{path}: zero_optimization.stage is {stage!r}; it is 0, 1 or 2")
    return stage


def reduce_bucket_size(config: Config) -> int:
    """Values that ZeRO reduces at a time; DeepSpeed's own default without a setting."""
    path = deepspeed_file(config)
    return _bucket_size(path, _read(path))


def _bucket_size(path: Path, content: dict[str, Any]) -> int:
    size = _zero_section(path, content).get("reduce_bucket_size", _DEFAULT_BUCKET)
    if isinstance(size, bool) or not isinstance(size, int | float) or size < 1:
        raise ConfigError(
            f"{path}: zero_optimization.reduce_bucket_size is {size!r}; it is a number of values, by default "
            f"{_DEFAULT_BUCKET}"
        )
    return int(size)


def _zero_section(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    section = content.get("zero_optimization", {})
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: zero_optimization is {section!r}; it is a JSON object with a stage")
    for key in _OFFLOADING:
        if section.get(key):
            raise ConfigError(
                f"{path}: zero_optimization.{key} is not supported: checkpoints hold the optimizer's state by name, "
                "from the device. Remove it; a larger ZeRO stage or training.activation_checkpointing saves memory"
            )
    return section


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(
            f"{path}: the DeepSpeed configuration cannot be read: there is no such file. Set deepspeed.config."
        )
    try:
        content = json.loads(read_text(path, "DeepSpeed configuration"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: this is not valid JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a DeepSpeed configuration is a JSON object")
    return content
