"""Multi-node DeepSpeed training, evaluation and submission of SegFormer on SPARK."""

__version__ = "0.1.0"
