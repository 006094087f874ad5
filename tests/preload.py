"""Imported once by the server that forks test ranks."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers  # noqa: E402, F401

import segformer_spark.data.loader  # noqa: E402, F401
import segformer_spark.models.pretrained  # noqa: E402, F401
