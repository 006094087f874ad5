"""Imported once by the server that forks test ranks: a rank starts in a tenth of a second instead of seconds."""

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  compiles at its import, which imports torch's inductor
import matplotlib.figure  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import segformer_spark.anomaly.evaluate
import segformer_spark.anomaly.fit
import segformer_spark.bench.scaling
import segformer_spark.engine.transfer
import segformer_spark.submission.submit
import segformer_spark.training.parity
import segformer_spark.training.train
import segformer_spark.training.tune  # noqa: F401

# DeepSpeed collects garbage when an engine is closed; that would touch, and so copy, every page that a fork shares.
gc.freeze()
