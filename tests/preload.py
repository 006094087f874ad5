"""Imported once by the server that forks test ranks."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import segformer_spark.data.loader
import segformer_spark.models.pretrained  # noqa: F401
