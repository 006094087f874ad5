"""Fields of `training`: batches, optimizer, schedule, loss, validation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import field_validator, model_validator

from segformer_spark.config.section import Section, field
from segformer_spark.errors import ConfigError


class OptimizerConfig(Section):
    type: Literal["adamw", "adam", "sgd"] = field(
        "adamw",
        "AdamW (Loshchilov and Hutter 2019), Adam (Kingma and Ba 2015), or stochastic gradient descent with momentum.",
    )
    lr: float = field(6e-5, "Peak learning rate.", env="LEARNING_RATE", gt=0, le=10)
    weight_decay: float = field(
        0.01,
        "Weight decay; norms and biases have none. adamw subtracts it from the weights, adam and sgd add it to the "
        "gradient (L2 penalty).",
        env="WEIGHT_DECAY",
        ge=0,
        le=1,
    )
    betas: tuple[float, float] = field((0.9, 0.999), "Moment decays of adamw and adam.", strict=False)
    eps: float = field(1e-8, "Denominator term of adamw and adam.", gt=0)
    momentum: float = field(0.9, "Momentum of sgd.", ge=0, lt=1)
    nesterov: bool = field(False, "Nesterov's momentum in sgd (Sutskever et al. 2013).")
    head_lr_multiplier: float = field(1.0, "Learning rate of the decode head relative to the encoder's.", gt=0, le=1000)
    layer_decay: float = field(
        1.0, "Factor of the learning rate per encoder block away from the head; 1 for none.", gt=0, le=1
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = field(
        "none", "Whether lr is multiplied by the global batch over lr_reference_batch, or its square root."
    )
    lr_reference_batch: int = field(16, "Global batch that lr was chosen for.", ge=1)

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both betas must lie in [0, 1)")
        return value

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimizerConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class SchedulerConfig(Section):
    type: Literal["warmup_cosine", "warmup_poly", "warmup_linear", "constant", "cosine_restarts", "plateau"] = field(
        "warmup_cosine",
        "Shape of the learning rate after the linear warm-up. cosine_restarts: cosines that begin anew (Loshchilov and "
        "Hutter 2017); plateau: lowered when validations bring no better training.selection_metric.",
    )
    warmup_epochs: float = field(5.0, "Length of the linear warm-up in epochs.", env="WARMUP_EPOCHS", ge=0)
    warmup_steps: int | None = field(None, "Length of the warm-up in steps; overrides warmup_epochs.", ge=0)
    min_lr_ratio: float = field(0.0, "Learning rate at the end relative to the peak.", ge=0, le=1)
    power: float = field(1.0, "Exponent of warmup_poly.", gt=0, le=10)
    restart_epochs: float = field(10.0, "Length of the first cosine of cosine_restarts in epochs.", gt=0)
    restart_factor: float = field(2.0, "Length of a cosine of cosine_restarts relative to the one before.", ge=1)
    plateau_factor: float = field(0.1, "Factor by which plateau lowers the learning rate.", gt=0, lt=1)
    plateau_patience: int = field(10, "Validations without a better score before plateau lowers it.", ge=1)


class LossConfig(Section):
    type: Literal["ce", "dice", "ce_dice", "focal", "focal_dice", "lovasz", "ohem", "boundary_ce"] = field(
        "ce_dice", "Loss.", env="LOSS"
    )
    ce_weight: float = field(0.5, "Weight of cross-entropy in ce_dice, of focal in focal_dice.", ge=0)
    dice_weight: float = field(0.5, "Weight of Dice in ce_dice and focal_dice.", ge=0)
    class_weights: list[float] | Literal["auto", "inverse", "median_frequency", "effective_number"] | None = field(
        None,
        "One weight per class, or a rule that makes them from the manifest (auto: median_frequency); null for equal.",
    )
    label_smoothing: float = field(0.0, "Label smoothing of cross-entropy.", ge=0, lt=1)
    focal_gamma: float = field(2.0, "Focusing exponent of focal (Lin et al. 2017).", ge=0, le=10)
    dice_smooth: float = field(1.0, "Added to numerator and denominator of Dice, in pixels.", gt=0)
    ohem_threshold: float = field(0.7, "ohem keeps pixels whose true class has a probability below this.", gt=0, le=1)
    ohem_min_share: float = field(0.1, "ohem keeps at least this share of an image's pixels.", ge=0, le=1)
    auxiliary_weight: float = field(0.4, "Weight of the loss of auxiliary logits, which deeplabv3 has.", ge=0)
    boundary_radius: int = field(3, "Width in pixels of the band along class boundaries in boundary_ce.", ge=1, le=64)
    boundary_weight: float = field(4.0, "Weight that boundary_ce adds to pixels of the band.", ge=0)

    def refuse_other_classes(self, num_classes: int) -> None:
        """Raise ConfigError for weights of another number of classes."""
        weights = self.class_weights
        if isinstance(weights, list) and len(weights) != num_classes:
            raise ConfigError(
                f"training.loss.class_weights has {len(weights)} entries, there are {num_classes} classes"
            )

    @model_validator(mode="after")
    def _weights_make_sense(self) -> LossConfig:
        if self.type in ("ce_dice", "focal_dice") and self.ce_weight + self.dice_weight == 0:
            raise ValueError("ce_weight and dice_weight are both 0: there is nothing to minimise")
        if self.label_smoothing and self.type not in ("ce", "ce_dice"):
            raise ValueError(f"label_smoothing goes with ce and ce_dice, the loss is {self.type}")
        if self.class_weights == []:
            raise ValueError("class_weights is empty; give one weight per class, or null")
        if isinstance(self.class_weights, list) and not all(weight > 0 for weight in self.class_weights):
            raise ValueError("class_weights must all be above 0")
        return self


class ValidationConfig(Section):
    every_epochs: int | None = field(1, "Validate after every N epochs; null for steps only.", ge=1, resume_safe=True)
    every_steps: int | None = field(None, "Validate after every N optimizer steps.", ge=1, resume_safe=True)
    train_subset: int | None = field(
        None,
        "Also measure mIoU on this many training images, always the same and shown as validation images are; null for "
        "none. Takes as long as so many validation images.",
        ge=1,
        resume_safe=True,
    )
    at_start: bool = field(False, "Validate once before the first step, as a baseline.")
    batch_size: int | None = field(
        None, "Images per rank at a time; null takes training.batch_size.", ge=1, resume_safe=True
    )


class EarlyStoppingConfig(Section):
    patience: int | None = field(
        30, "Stop after N validations without a better score; null never stops.", ge=1, resume_safe=True
    )
    min_delta: float = field(
        0.0,
        "Patience begins anew when the score rises by more than this; any rise makes a new best model.",
        ge=0,
        resume_safe=True,
    )


class EmaConfig(Section):
    decay: float | None = field(
        None,
        "Decay per step of the averaged weights, which are then validated and exported; null for none.",
        gt=0,
        lt=1,
    )


class TrainingConfig(Section):
    epochs: int = field(100, "Passes over the training split.", env="EPOCHS", ge=1)
    max_steps: int | None = field(
        None, "Stop after N optimizer steps, and let the schedule end there.", env="MAX_STEPS", ge=1
    )
    batch_size: int = field(
        8, "Images per device in one forward pass (micro-batch).", env="BATCH_SIZE", ge=1, resume_safe=True
    )
    accumulation_steps: int | None = field(
        None,
        "Micro-batches per optimizer step; null: 1, or what global_batch_size asks.",
        env="ACCUMULATION_STEPS",
        ge=1,
        resume_safe=True,
    )
    global_batch_size: int | None = field(
        None,
        "Images per optimizer step over all devices; sets accumulation_steps.",
        env="GLOBAL_BATCH_SIZE",
        ge=1,
        resume_safe=True,
    )
    accumulation: Literal["exact", "mean"] = field(
        "exact",
        "exact: micro-batches count as one batch in loss, Dice and batch norm, for one more encoder pass; "
        "mean: the mean of their losses.",
    )
    activation_checkpointing: bool = field(
        False, "Recompute the encoder's blocks in the backward pass instead of keeping them.", resume_safe=True
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = field(
        "fp32",
        "Arithmetic of the forward and backward pass. fp32 is strict; tf32 is fp32 with products in TF32, on GPUs that "
        "have it (A100, H100), elsewhere fp32.",
        env="PRECISION",
    )
    reduce_precision: Literal["fp32", "bf16"] = field(
        "fp32",
        "Type in which gradients are averaged over ranks under bf16. bf16 sends half the bytes and rounds every sum: "
        "0.4 % of the mean gradient on 8 ranks, 1.8 % on 256.",
        absent="bf16",
    )
    gradient_clip: float = field(1.0, "Largest gradient norm; 0 switches clipping off.", ge=0)
    max_skipped_steps: int = field(
        20, "Stop when fp16 overflow skips this many updates in a row.", ge=1, resume_safe=True
    )
    reorder_after_divergence: int = field(
        0,
        "How often a run whose loss or gradient is not finite may go on from its last checkpoint, with the training "
        "images in another order. 0: it ends; in the same order the same would happen.",
        ge=0,
        resume_safe=True,
    )
    selection_metric: str = field(
        "auto",
        "Validation metric that chooses the best checkpoint, higher is better; auto: spark_score for SPARK's classes, "
        "else miou.",
        absent="spark_score",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    loss: LossConfig = LossConfig()
    validation: ValidationConfig = ValidationConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    ema: EmaConfig = EmaConfig()

    def metric_among(self, defined: Collection[str]) -> str:
        """The selection metric where these metrics are defined."""
        if self.selection_metric != "auto":
            return self.selection_metric
        return "spark_score" if "spark_score" in defined else "miou"
