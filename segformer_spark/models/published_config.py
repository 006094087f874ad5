"""config.json of a SegFormer's folder, also one from elsewhere: sizes and classes are taken, and nothing else.

transformers follows such a file further: attn_implementation may name a repository of kernels, quantization_config and
auto_map code that is imported. No key of a model folder chooses code, paths or the network here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import SegformerConfig

from segformer_spark.config.explain import first_problem
from segformer_spark.errors import CheckpointError, DataError
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import logger

_MOST_BYTES = 2**24
_Side = Annotated[int, Field(ge=1, le=4096)]
_Four = Annotated[list[_Side], Field(min_length=4, max_length=4)]
_Share = Annotated[float, Field(ge=0, le=1)]

_SAY_NOTHING = {
    *("_name_or_path", "architectures", "chunk_size_feed_forward", "downsampling_rates", "dtype", "image_size"),
    *("is_encoder_decoder", "output_attentions", "output_hidden_states", "problem_type", "reshape_last_stage"),
    *("return_dict", "torch_dtype", "transformers_version", "model_type"),
}
"""Keys that transformers writes and that change nothing here: weights are always read in fp32."""


class _SegformerFile(BaseModel):
    """What is taken; defaults are those of transformers, for keys that a file leaves out."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    depths: _Four
    hidden_sizes: _Four
    num_attention_heads: _Four = [1, 2, 5, 8]
    decoder_hidden_size: _Side = 256
    num_channels: Literal[3] = 3
    num_encoder_blocks: Literal[4] = 4
    sr_ratios: _Four = [8, 4, 2, 1]
    patch_sizes: _Four = [7, 3, 3, 3]
    strides: _Four = [4, 2, 2, 2]
    mlp_ratios: _Four = [4, 4, 4, 4]
    hidden_act: Literal["gelu"] = "gelu"
    hidden_dropout_prob: _Share = 0.0
    attention_probs_dropout_prob: _Share = 0.0
    classifier_dropout_prob: _Share = 0.1
    drop_path_rate: _Share = 0.1
    layer_norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    initializer_range: float = Field(default=0.02, ge=0, le=10)
    semantic_loss_ignore_index: int = 255
    id2label: dict[str, str] = Field(min_length=1, max_length=65_536)


def read_segformer_config(folder: Path) -> SegformerConfig:
    """The network that a folder's config.json describes.

    Raises:
        CheckpointError: there is no such file, it is damaged, or describes something else.
    """
    path = folder / "config.json"
    try:
        raw = read_json_object(path, _MOST_BYTES)
        if raw.get("model_type") != "segformer":
            raise CheckpointError(f"{path}: its model_type is {raw.get('model_type')!r}, segformer is expected")
        taken = _SegformerFile.model_validate(raw)
        names = {int(index): name for index, name in taken.id2label.items()}
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_problem(error)}") from error
    except (DataError, ValueError) as error:
        raise CheckpointError(f"{path}: this is no SegFormer's configuration: {error}") from error
    if sorted(names) != list(range(len(names))):
        raise CheckpointError(f"{path}: its classes are not numbered 0, 1, ...")
    left = sorted(raw.keys() - _SegformerFile.model_fields.keys() - _SAY_NOTHING - {"label2id", "num_labels"})
    if left:
        logger.warning("%s: not used, since sizes and classes alone are taken: %s", path, ", ".join(left))
    values = taken.model_dump(exclude={"id2label"})
    return SegformerConfig(**values, id2label=names, label2id={name: index for index, name in names.items()})
