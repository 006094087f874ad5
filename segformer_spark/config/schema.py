"""The configuration: every field with its type, range, default and meaning.

`docs/configuration.md` is made from this file. A field that may change when a run is resumed carries
`resume_safe`; one that the environment may set carries its variable as `env`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RUN_NAME_PATTERN = r"[A-Za-z0-9._-]{1,64}"


def _field(default: Any, description: str, *, env: str | None = None, resume_safe: bool = False, **limits: Any) -> Any:
    extra: dict[str, Any] = {"resume_safe": resume_safe}
    if env:
        extra["env"] = env
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Strict base: unknown keys are errors, values are not coerced between kinds, sections do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ExperimentConfig(Section):
    name: str = _field(
        "{dataset}_{variant}_{image_size}",
        "Name of the run; {dataset}, {variant} and {image_size} are filled in. Letters, digits, '.', '_', '-'.",
        env="RUN_NAME",
    )
    seed: int = _field(42, "Seed of weights, sample order and augmentation.", env="SEED", ge=0, le=2**31 - 1)
    notes: str = _field("", "Free text for the record.", resume_safe=True)


class DataConfig(Section):
    dataset: str = _field("spark", "Name of the data set's reader in data/registry.py.")
    root: str = _field("data/spark", "Folder of the data set.", env="DATA_ROOT", resume_safe=True)
    image_size: int = _field(
        512, "Side in pixels that images are resized to for the model.", env="IMAGE_SIZE", ge=32, le=4096
    )
    train_split: str = _field("train", "Split that is trained on.")
    val_split: str = _field("val", "Split that is validated on.")
    val_subset: int | None = _field(
        None, "Validate on this many images during training, always the same; null for all.", ge=1
    )
    num_workers: int = _field(4, "Loader processes per rank.", env="NUM_WORKERS", ge=0, le=64, resume_safe=True)


class ModelConfig(Section):
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = _field("b2", "SegFormer size.", env="SEGFORMER_VARIANT")
    pretrained: str = _field(
        "ade20k",
        "Start: ade20k, cityscapes, imagenet (encoder only), none, or a folder in the Hugging Face layout.",
        env="PRETRAINED",
    )
    weights_dir: str = _field(
        "weights", "Folder that `weights fetch` fills and runs read.", env="WEIGHTS_DIR", resume_safe=True
    )
    num_classes: int | None = _field(None, "Number of classes; null takes the data set's.", ge=2, le=65535)
    freeze_backbone: bool = _field(False, "Train the decode head only.", env="FREEZE_BACKBONE")
    dropout: float = _field(0.1, "Dropout before the classifier.", ge=0, lt=1)
    drop_path: float = _field(0.1, "Stochastic depth at the last block, from 0 at the first.", ge=0, lt=1)


class OptimizerConfig(Section):
    type: Literal["adamw"] = _field("adamw", "AdamW (Loshchilov and Hutter 2019).")
    lr: float = _field(6e-5, "Peak learning rate.", env="LEARNING_RATE", gt=0, le=10)
    weight_decay: float = _field(
        0.01, "Decoupled weight decay; norms and biases have none.", env="WEIGHT_DECAY", ge=0, le=1
    )
    betas: tuple[float, float] = _field((0.9, 0.999), "AdamW's moment decays.", strict=False)
    eps: float = _field(1e-8, "AdamW's denominator term.", gt=0)
    head_lr_multiplier: float = _field(
        1.0, "Learning rate of the decode head relative to the encoder's.", gt=0, le=1000
    )

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both betas must lie in [0, 1)")
        return value


class SchedulerConfig(Section):
    type: Literal["warmup_cosine", "warmup_poly", "warmup_linear", "constant"] = _field(
        "warmup_cosine", "Shape of the learning rate after the linear warm-up."
    )
    warmup_epochs: float = _field(5.0, "Length of the linear warm-up in epochs.", env="WARMUP_EPOCHS", ge=0)
    warmup_steps: int | None = _field(None, "Length of the warm-up in steps; overrides warmup_epochs.", ge=0)
    min_lr_ratio: float = _field(0.0, "Learning rate at the end relative to the peak.", ge=0, le=1)
    power: float = _field(1.0, "Exponent of warmup_poly.", gt=0, le=10)


class LossConfig(Section):
    type: Literal["ce", "dice", "ce_dice", "focal"] = _field("ce_dice", "Loss.", env="LOSS")
    ce_weight: float = _field(0.5, "Weight of cross-entropy in ce_dice.", ge=0)
    dice_weight: float = _field(0.5, "Weight of Dice in ce_dice.", ge=0)
    class_weights: list[float] | None = _field(None, "One weight per class; null for equal weights.")
    label_smoothing: float = _field(0.0, "Label smoothing of cross-entropy.", ge=0, lt=1)
    focal_gamma: float = _field(2.0, "Focusing exponent of focal (Lin et al. 2017).", ge=0, le=10)
    dice_smooth: float = _field(1.0, "Added to numerator and denominator of Dice, in pixels.", gt=0)

    @model_validator(mode="after")
    def _weights_make_sense(self) -> LossConfig:
        if self.type == "ce_dice" and self.ce_weight + self.dice_weight == 0:
            raise ValueError("ce_weight and dice_weight are both 0: there is nothing to minimise")
        if self.class_weights is not None and not all(weight > 0 for weight in self.class_weights):
            raise ValueError("class_weights must all be above 0")
        return self


class ValidationConfig(Section):
    every_epochs: int | None = _field(1, "Validate after every N epochs; null for steps only.", ge=1, resume_safe=True)
    every_steps: int | None = _field(None, "Validate after every N optimizer steps.", ge=1, resume_safe=True)
    at_start: bool = _field(False, "Validate once before the first step, as a baseline.")
    batch_size: int | None = _field(
        None, "Images per rank at a time; null takes training.batch_size.", ge=1, resume_safe=True
    )


class EarlyStoppingConfig(Section):
    patience: int | None = _field(
        30, "Stop after N validations without a better score; null never stops.", ge=1, resume_safe=True
    )
    min_delta: float = _field(0.0, "A score counts as better when it rises by more than this.", ge=0, resume_safe=True)


class TrainingConfig(Section):
    epochs: int = _field(100, "Passes over the training split.", env="EPOCHS", ge=1)
    max_steps: int | None = _field(
        None, "Stop after N optimizer steps, and let the schedule end there.", env="MAX_STEPS", ge=1
    )
    batch_size: int = _field(
        8, "Images per device in one forward pass (micro-batch).", env="BATCH_SIZE", ge=1, resume_safe=True
    )
    accumulation_steps: int | None = _field(
        None,
        "Micro-batches per optimizer step; null: 1, or what global_batch_size asks.",
        env="ACCUMULATION_STEPS",
        ge=1,
        resume_safe=True,
    )
    global_batch_size: int | None = _field(
        None,
        "Images per optimizer step over all devices; sets accumulation_steps.",
        env="GLOBAL_BATCH_SIZE",
        ge=1,
        resume_safe=True,
    )
    precision: Literal["fp32", "bf16", "fp16"] = _field(
        "fp32", "Arithmetic of the forward and backward pass.", env="PRECISION"
    )
    gradient_clip: float = _field(1.0, "Largest gradient norm; 0 switches clipping off.", ge=0)
    max_skipped_steps: int = _field(
        20, "Stop when fp16 overflow skips this many updates in a row.", ge=1, resume_safe=True
    )
    selection_metric: str = _field(
        "spark_score", "Validation metric that chooses the best checkpoint, higher is better."
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    loss: LossConfig = LossConfig()
    validation: ValidationConfig = ValidationConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()


class AugmentationConfig(Section):
    """Each switch is a probability; 0 leaves the transform out."""

    horizontal_flip: float = _field(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vertical_flip: float = _field(0.5, "Probability of an up-down flip.", ge=0, le=1)
    affine: float = _field(0.5, "Probability of one joint rotation, scale and shift.", ge=0, le=1)
    rotation_degrees: float = _field(30.0, "Rotation drawn from +- this.", ge=0, le=180)
    scale: tuple[float, float] = _field((0.8, 1.2), "Scale factor drawn from this range.", strict=False)
    shift: float = _field(0.1, "Shift drawn from +- this share of the side.", ge=0, le=0.5)
    color: float = _field(0.5, "Probability of a change of brightness, contrast, saturation and hue.", ge=0, le=1)
    brightness: float = _field(0.2, "Brightness factor drawn from 1 +- this.", ge=0, lt=1)
    contrast: float = _field(0.2, "Contrast factor drawn from 1 +- this.", ge=0, lt=1)
    saturation: float = _field(0.2, "Saturation factor drawn from 1 +- this.", ge=0, lt=1)
    hue: float = _field(0.02, "Hue rotation drawn from +- this share of the circle.", ge=0, le=0.5)
    blur: float = _field(0.1, "Probability of Gaussian blur.", ge=0, le=1)
    blur_sigma: tuple[float, float] = _field((0.3, 1.5), "Standard deviation of the blur in pixels.", strict=False)

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentationConfig:
        for name in ("scale", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high")
        return self


class OutputConfig(Section):
    save_path: str = _field(
        "runs/{name}", "Run directory; {name} is the run's name.", env="SAVE_PATH", resume_safe=True
    )
    checkpoint_every_steps: int | None = _field(
        None, "Checkpoint after every N optimizer steps; null: at the end of every epoch only.", ge=1, resume_safe=True
    )
    keep_checkpoints: int = _field(2, "Newest checkpoints kept for resuming.", ge=1, le=100, resume_safe=True)
    log_every_steps: int = _field(10, "One log line per N optimizer steps.", ge=1, resume_safe=True)
    tensorboard: bool = _field(True, "Write TensorBoard scalars.", resume_safe=True)


class DeepSpeedConfig(Section):
    zero_stage: Literal[0, 1, 2] = _field(
        1, "ZeRO stage; selects ds_configs/zero<N>.json.", env="ZERO_STAGE", resume_safe=True
    )
    config: str | None = _field(
        None, "Another DeepSpeed JSON file instead of ds_configs/zero<N>.json.", resume_safe=True
    )


class HardwareConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = _field(
        "auto", "auto takes the GPU when there is one.", env="DEVICE", resume_safe=True
    )
    threads: int | None = _field(
        None, "CPU threads per rank; null shares the cores among the ranks of the node.", ge=1, resume_safe=True
    )
    deterministic: bool = _field(
        False, "Deterministic GPU kernels; bilinear upsampling's backward is slower then.", resume_safe=True
    )
    timeout_minutes: float = _field(30.0, "A collective that waits longer ends the job.", gt=0, resume_safe=True)


class Config(Section):
    """One experiment. Sections follow the order of the pipeline."""

    experiment: ExperimentConfig = ExperimentConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    output: OutputConfig = OutputConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    hardware: HardwareConfig = HardwareConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        classes, weights = self.model.num_classes, self.training.loss.class_weights
        if classes is not None and weights is not None and len(weights) != classes:
            raise ValueError(f"training.loss.class_weights has {len(weights)} entries, model.num_classes is {classes}")
        validation = self.training.validation
        if validation.every_epochs is None and validation.every_steps is None:
            raise ValueError("training.validation: every_epochs and every_steps are both null; set one")
        return self
