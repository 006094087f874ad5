"""Imported once by the server that forks test ranks: a rank starts in a tenth of a second instead of seconds."""

import atexit
import gc
import os
import tempfile
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import matplotlib.figure  # noqa: F401
import pytest  # noqa: F401
import segmentation_models_pytorch  # noqa: F401
import sklearn.metrics  # noqa: F401
import timm  # noqa: F401
import torch
import transformers  # noqa: F401

import segformer_spark.anomaly.evaluate
import segformer_spark.anomaly.fit
import segformer_spark.bench.scaling
import segformer_spark.engine.transfer
import segformer_spark.submission.submit
import segformer_spark.training.parity
import segformer_spark.training.train
import segformer_spark.training.tune  # noqa: F401
from segformer_spark.engine.engine import load_deepspeed
from segformer_spark.models.segformer import portable_names
from segformer_spark.run.curves import draw_curves
from segformer_spark.run.record import software_record
from tests.tiny import tiny_segformer

load_deepspeed(torch.device("cpu"))
# What every training does once: versions of all packages, fonts, the names of the published files.
software_record()
with tempfile.TemporaryDirectory() as folder:
    draw_curves([], Path(folder) / "curves.png", "warm")
portable_names(tiny_segformer(("a", "b", "c"), seed=0))
# DeepSpeed collects garbage when an engine is closed; that would touch, and so copy, every page that a fork shares.
gc.freeze()
atexit.register(gc.unfreeze)  # what is frozen at the end is reported as leaked
