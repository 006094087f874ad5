"""The configuration: every field with its type, range, default and meaning.

`docs/configuration.md` is made from these files. A field that may change when a run is resumed carries
`resume_safe`; one that the environment may set carries its variable as `env`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from segformer_spark.config.data_schema import (
    AugmentationConfig,
    CropConfig,
    DataConfig,
    FolderConfig,
    InferenceConfig,
)
from segformer_spark.config.section import Section, field
from segformer_spark.config.training_schema import (
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainingConfig,
)
from segformer_spark.config.variants import VARIANTS, PerStage, Variant, VariantName

TrackerName = Literal["mlflow", "wandb"]

RUN_NAME_PATTERN = r"[A-Za-z0-9._-]{1,64}"

__all__ = [
    "AugmentationConfig",
    "Config",
    "CropConfig",
    "DataConfig",
    "DeepSpeedConfig",
    "ExperimentConfig",
    "FolderConfig",
    "HardwareConfig",
    "InferenceConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "SchedulerConfig",
    "TrainingConfig",
]


class ExperimentConfig(Section):
    name: str = field(
        "{dataset}_{variant}_{image_size}",
        "Name of the run; {dataset}, {variant} and {image_size} are filled in. Letters, digits, '.', '_', '-'.",
        env="RUN_NAME",
    )
    seed: int = field(42, "Seed of weights, sample order and augmentation.", env="SEED", ge=0, le=2**31 - 1)
    notes: str = field("", "Free text for the record.", resume_safe=True)


class CustomVariantConfig(Section):
    """Sizes of `model.variant: custom`; the defaults are B0's."""

    depths: PerStage = field((2, 2, 2, 2), "Blocks per stage.", strict=False)
    hidden_sizes: PerStage = field((32, 64, 160, 256), "Channels per stage, divisible by its heads.", strict=False)
    num_heads: PerStage = field((1, 2, 5, 8), "Attention heads per stage.", strict=False)
    decoder_size: int = field(256, "Channels of the decode head.", ge=1, le=4096)

    @model_validator(mode="after")
    def _sizes_fit(self) -> CustomVariantConfig:
        if min(*self.depths, *self.hidden_sizes, *self.num_heads) < 1:
            raise ValueError("depths, hidden_sizes and num_heads are all at least 1")
        for width, heads in zip(self.hidden_sizes, self.num_heads, strict=True):
            if width % heads:
                raise ValueError(f"hidden_sizes: {width} channels do not divide into {heads} heads (num_heads)")
        return self


class ModelConfig(Section):
    name: str = field(
        "segformer",
        "segformer, unet, deeplabv3plus, fpn, hiera, deeplabv3, fcn or vit (models/registry.py).",
        env="MODEL_NAME",
    )
    variant: VariantName = field(
        "b2", "SegFormer size; custom takes the sizes of model.custom.", env="SEGFORMER_VARIANT"
    )
    encoder: str | None = field(
        None, "Encoder of the other models, such as resnet50; null takes the model's first.", env="ENCODER"
    )
    pretrained: str = field(
        "ade20k",
        "Start: none, imagenet (encoder only), for segformer also ade20k and cityscapes; a model folder; or a file of "
        "the encoder's weights for the other models.",
        env="PRETRAINED",
        path=True,
    )
    weights_dir: str = field(
        "weights", "Folder that `weights fetch` fills and runs read.", env="WEIGHTS_DIR", resume_safe=True, path=True
    )
    num_classes: int | None = field(None, "Number of classes; null takes the data set's.", ge=2, le=255)
    freeze_backbone: bool = field(False, "Train the decode head only.", env="FREEZE_BACKBONE")
    dropout: float = field(0.1, "Dropout before segformer's classifier.", ge=0, lt=1)
    drop_path: float = field(0.1, "Stochastic depth at segformer's last block, from 0 at the first.", ge=0, lt=1)
    custom: CustomVariantConfig = CustomVariantConfig()

    @property
    def sizes(self) -> Variant:
        """The sizes of the variant."""
        if self.variant != "custom":
            return VARIANTS[self.variant]
        own = self.custom
        return Variant(own.depths, own.hidden_sizes, own.decoder_size, own.num_heads)

    @property
    def label(self) -> str:
        """What names of runs call the model: the variant, or name and encoder."""
        if self.name == "segformer":
            return self.variant
        return self.name if self.encoder is None else f"{self.name}_{self.encoder}"


class OutputConfig(Section):
    save_path: str = field(
        "runs/{name}", "Run directory; {name} is the run's name.", env="SAVE_PATH", resume_safe=True, path=True
    )
    checkpoint_every_steps: int | None = field(
        None,
        "Checkpoint after every N optimizer steps, too; null: at the end of epochs only.",
        env="CHECKPOINT_EVERY",
        ge=1,
        resume_safe=True,
    )
    checkpoint_every_epochs: int = field(
        1, "Checkpoint at the end of every N-th epoch, and of the run.", ge=1, resume_safe=True
    )
    checkpoint_every_minutes: float | None = field(
        None, "Checkpoint when the last one is N minutes old, too.", gt=0, resume_safe=True
    )
    keep_checkpoints: int = field(
        2,
        "Newest checkpoints kept for resuming; two and the best model's are kept always.",
        ge=1,
        le=100,
        resume_safe=True,
    )
    save_in_background: bool = field(
        True,
        "Write checkpoints beside the training, from a copy in the memory of the first rank; false waits for each.",
        resume_safe=True,
    )
    keep_every: int | None = field(
        None, "Keep the checkpoints of every N-th step for good, beside the newest.", ge=1, resume_safe=True
    )
    log_every_steps: int = field(10, "One log line per N optimizer steps.", ge=1, resume_safe=True)
    tensorboard: bool = field(True, "Write TensorBoard scalars and pictures.", resume_safe=True)
    trackers: list[TrackerName] = field(
        [],
        "Experiment trackers beside TensorBoard: mlflow, wandb. Both write into the run directory, without network; "
        "pip install 'segformer-spark[mlflow]' or [wandb].",
        resume_safe=True,
    )
    tensorboard_images: int = field(
        4, "Validation images whose predictions are drawn at every validation.", ge=0, le=64, resume_safe=True
    )


class DeepSpeedConfig(Section):
    zero_stage: Literal[0, 1, 2] = field(
        1, "ZeRO stage; selects ds_configs/zero<N>.json.", env="ZERO_STAGE", resume_safe=True
    )
    config: str | None = field(
        None, "Another DeepSpeed JSON file instead of ds_configs/zero<N>.json.", resume_safe=True, path=True
    )


class HardwareConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = field(
        "auto", "auto takes the GPU when there is one.", env="DEVICE", resume_safe=True
    )
    threads: int | None = field(
        None, "CPU threads per rank; null shares the cores among the ranks of the node.", ge=1, resume_safe=True
    )
    deterministic: bool = field(
        False,
        "Deterministic kernels; bilinear upsampling's backward is slower on GPUs then, on CPUs it costs nothing.",
        resume_safe=True,
    )
    kernels: Literal["auto", "cpu", "plain", "gpu"] = field(
        "auto",
        "Arithmetic of SegFormer and of CE + Dice. cpu: the CPU's; plain: the GPU's, in plain torch, on any device; "
        "gpu: the GPU's with custom operations; auto: by the device. SEGFORMER_KERNELS comes before it.",
        absent="cpu",
        resume_safe=True,
    )
    compile: Literal["off", "on", "auto"] = field(
        "off",
        "torch.compile, which needs a C++ compiler on the nodes. on: the encoder as a whole; auto: block by block, "
        "equal blocks once, which takes less time at the start. true and false mean on and off.",
        resume_safe=True,
    )
    cuda_graphs: Literal["off", "auto"] = field(
        "off",
        "auto: replay the encoder's stages as CUDA graphs in training, where the host is slower than the GPU; where a "
        "graph cannot be (a CPU, accumulation, activation checkpointing), they run as ever, and the log says why.",
        resume_safe=True,
    )
    timeout_minutes: float = field(30.0, "A collective that waits longer ends the job.", gt=0, resume_safe=True)
    peer_timeout: float | None = field(
        60.0,
        "Seconds without a heartbeat from another rank after which a rank ends: its node or the network is lost. "
        "null waits for timeout_minutes.",
        env="PEER_TIMEOUT",
        ge=1,
        resume_safe=True,
    )
    hang_timeout: float | None = field(
        300.0,
        "Seconds that a training step may take, or 20 times the longest so far if that is more: a rank that takes "
        "longer shows where its threads are and ends. null waits for timeout_minutes.",
        ge=1,
        resume_safe=True,
    )
    compare_ranks_every: int | None = field(
        200,
        "Every N steps, and before each checkpoint, ranks compare their weights and statistics; one that differs ends "
        "the run. null: never.",
        ge=1,
        resume_safe=True,
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _of_bool(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Config(Section):
    """One experiment. Sections follow the order of the pipeline."""

    experiment: ExperimentConfig = ExperimentConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    inference: InferenceConfig = InferenceConfig()
    output: OutputConfig = OutputConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    hardware: HardwareConfig = HardwareConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        classes, weights = self.model.num_classes, self.training.loss.class_weights
        if classes is not None and isinstance(weights, list) and len(weights) != classes:
            raise ValueError(f"training.loss.class_weights has {len(weights)} entries, model.num_classes is {classes}")
        validation = self.training.validation
        if validation.every_epochs is None and validation.every_steps is None:
            raise ValueError("training.validation: every_epochs and every_steps are both null; set one")
        if self.training.precision == "fp16" and self.deepspeed.zero_stage == 0:
            raise ValueError("training.precision fp16 needs deepspeed.zero_stage 1 or 2; with stage 0 use bf16 or fp32")
        if self.model.freeze_backbone and self.training.optimizer.layer_decay != 1:
            raise ValueError("training.optimizer.layer_decay is for the encoder's blocks, and freeze_backbone is on")
        if self.model.variant == "custom" and self.model.pretrained in ("ade20k", "cityscapes", "imagenet"):
            raise ValueError(
                f"model.pretrained {self.model.pretrained}: there are no such weights of variant custom; set "
                "model.pretrained=none, or a model folder"
            )
        if self.model.name != "segformer":
            self._refuse_what_segformer_alone_has()
        if self.training.precision == "fp16" and self.training.ema.decay is not None:
            raise ValueError("training.ema averages fp32 weights, under fp16 the model has none; use bf16 or fp32")
        return self

    def _refuse_what_segformer_alone_has(self) -> None:
        name, usual = self.model.name, ModelConfig()
        changed = {
            "model.dropout": self.model.dropout != usual.dropout,
            "model.variant": self.model.variant == "custom",
            "model.drop_path": self.model.drop_path != usual.drop_path,
            "training.activation_checkpointing": self.training.activation_checkpointing,
            "hardware.compile": self.hardware.compile != "off",
            "hardware.cuda_graphs": self.hardware.cuda_graphs != "off",
            "training.optimizer.layer_decay": self.training.optimizer.layer_decay != 1,
        }
        for dotted, is_set in changed.items():
            if is_set:
                raise ValueError(f"{dotted} is for segformer, model.name is {name}")
        if self.model.pretrained in ("ade20k", "cityscapes"):
            raise ValueError(
                f"model.pretrained {self.model.pretrained} is for segformer; {name} starts from none, imagenet (its "
                "encoder), a file of the encoder's weights or a model folder"
            )
