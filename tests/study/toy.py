"""A study of two tiny models on rendered streets, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.data.demo.streets import write_street_set

BASE = """
data: {dataset: street_hazards, root: ROOT, image_size: 64, num_workers: 0}
model:
  pretrained: none
  variant: custom
  custom: {depths: [1, 1, 1, 1], hidden_sizes: [8, 8, 8, 8], num_heads: [1, 1, 1, 1], decoder_size: 8}
training:
  epochs: 2
  batch_size: 4
  selection_metric: miou
  optimizer: {lr: 1e-3}
  scheduler: {warmup_epochs: 0}
  loss: {type: ce}
  validation: {train_subset: 4}
augmentation: {vertical_flip: 0.0, affine: 0.0, color: 0.0, blur: 0.0}
inference: {resize: native}
deepspeed: {zero_stage: 0}
output: {tensorboard: false, log_every_steps: 1}
hardware: {device: cpu, threads: 1}
"""
MODELS = """
base: base.yaml
models:
  Tiny: {}
  FPN: {model.variant: b2, model.name: fpn, model.encoder: mobilenet_v2}
seeds: [1]
splits: [val, train]
examples: 2
baseline: Tiny
reference: {FPN: {val_miou: 0.25, hours: 3.5, note: made up}}
"""
RECIPES = """
base: base.yaml
models:
  Tiny: {training.epochs: 1}
recipes:
  none: {augmentation.horizontal_flip: 0.0}
  + flip: {}
seeds: [1, 2]
"""


def write_study(folder: Path, name: str, text: str) -> Path:
    """The study file, its base and, once, its images."""
    root = folder / "streets"
    if not root.is_dir():
        write_street_set(root, numbers=(8, 6, 2), size=(48, 80))
    (folder / "base.yaml").write_text(BASE.replace("ROOT", str(root)))
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
