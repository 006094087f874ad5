"""SegFormer B0-B5: transformers' network with the merged decode head.

Parameter names in memory are transformers' live names, which change between its versions; everything that is stored
uses the portable names of the published checkpoints (`portable_names`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging as transformers_logging

from segformer_spark.config.variants import VARIANTS, Variant
from segformer_spark.kernels.select import Setting, select_arithmetic
from segformer_spark.models import mix_transformer_gpu
from segformer_spark.models.decode_head import MergedDecodeHead
from segformer_spark.models.graphed_stages import Capture, GraphedStages
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.mix_transformer import Block, encode, take_over_blocks
from segformer_spark.models.recomputed import arithmetic

transformers_logging.disable_progress_bar()

_STAGES = ("stage1", "stage2", "stage3", "stage4")

_KINDS_OF_BLOCKS = 64
"""Of a stage's first block and the others, with and without gradients, in training and evaluation, for several sizes:
torch.compile stops compiling at 8."""


def segformer_config(
    variant: str | Variant, class_names: Sequence[str], *, dropout: float = 0.1, drop_path: float = 0.1
) -> SegformerConfig:
    """The transformers configuration of a variant, by its name or sizes; `class_names` become id2label."""
    sizes = VARIANTS[variant] if isinstance(variant, str) else variant
    return SegformerConfig(
        depths=list(sizes.depths),
        hidden_sizes=list(sizes.hidden_sizes),
        num_attention_heads=list(sizes.num_heads),
        decoder_hidden_size=sizes.decoder_size,
        classifier_dropout_prob=dropout,
        drop_path_rate=drop_path,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )


def smallest_side(config: SegformerConfig) -> int:
    """Pixels that a side of an image must have: each stage reduces keys by a convolution that needs as many tokens."""
    side = 1
    for stride, reduction in reversed(list(zip(config.strides, config.sr_ratios, strict=True))):
        side = (max(side, reduction) - 1) * stride + 1
    return side


class SegFormer(SegmentationModel):
    """Logits at a quarter of the size, for images of any size from `min_side` on."""

    name = "segformer"
    output_stride = 4
    classifier_names = ("decode_head.classifier.weight", "decode_head.classifier.bias")
    network: SegformerForSemanticSegmentation

    def __init__(self, network: SegformerForSemanticSegmentation, *, freeze_backbone: bool = False) -> None:
        network.decode_head = MergedDecodeHead(network.decode_head)
        take_over_blocks(network.segformer)
        mix_transformer_gpu.prepare(network.segformer)
        super().__init__(network, _STAGES, freeze_backbone=freeze_backbone)
        self.min_side = smallest_side(network.config)
        self._encode_on_cpu: Callable[..., tuple[Tensor, ...]] = encode
        self._encode_on_gpu: Callable[..., tuple[Tensor, ...]] = mix_transformer_gpu.encode
        self._run_block: mix_transformer_gpu.RunBlock = mix_transformer_gpu.transform_block
        self._graphed: GraphedStages | None = None
        self._kernels: Setting = "auto"
        # Found once: a walk over all modules takes the host longer than many a kernel.
        self._blocks = tuple(block for block in self.encoder.modules() if isinstance(block, Block))

    @property
    def encoder(self) -> nn.Module:
        """The Mix Transformer."""
        module: nn.Module = self.network.segformer
        return module

    @property
    def variant(self) -> str | None:
        """b0 to b5, or None for other sizes."""
        config = self.network.config
        heads = tuple(config.num_attention_heads)
        own = Variant(tuple(config.depths), tuple(config.hidden_sizes), config.decoder_hidden_size, heads)
        return next((name for name, sizes in VARIANTS.items() if sizes == own), None)

    @property
    def num_classes(self) -> int:
        return int(self.network.config.num_labels)

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        kernels = select_arithmetic(self._kernels, images.device)
        if kernels == "cpu":
            maps = self._encode_on_cpu(self.encoder, images)
        else:
            given = (self.encoder, images, self._blocks, kernels, self._run_block, self._graphed)
            maps = self._encode_on_gpu(*given)
        return tuple(features.permute(0, 3, 1, 2) for features in maps)

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The encoder's maps -> logits (B, num_classes, ceil(H / 4), ceil(W / 4)), all of the head in one pass."""
        logits: Tensor = self.network.decode_head(features)
        return logits

    def penultimate(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps -> the fused map (B, D, ceil(H / 4), ceil(W / 4)) after batch norm and ReLU."""
        maps: Tensor = self.network.decode_head.penultimate(features)
        return maps

    def classify(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.network.decode_head.classify(maps)
        return logits

    def use_kernels(self, setting: Setting) -> None:
        """Choose the arithmetic, as hardware.kernels does."""
        self._kernels = self.network.decode_head.kernels = setting

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of the encoder's blocks and recompute the rest in the backward pass (Chen et al. 2016).

        The generator's state is restored for it, so that stochastic depth drops the same paths.
        """
        for block in self._blocks:
            block.recompute = True

    def recomputed_blocks(self) -> list[Block]:
        """The blocks that `checkpoint_activations` chose; empty before."""
        return [block for block in self._blocks if block.recompute]

    def compile_encoder(self, *, by_block: bool) -> None:
        """Let torch.compile build the encoder at its first use, for one input size at a time.

        Args:
            by_block: compile a block rather than the whole: equal blocks share what is compiled. To the CPU's
                arithmetic blocks of unlike stochastic depth are not equal.
        """
        if by_block:
            dynamo: Any = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, _KINDS_OF_BLOCKS)
            self._run_block = torch.compile(mix_transformer_gpu.transform_block, dynamic=False)
            on_cpu = torch.compile(Block.transform, dynamic=False)
            for block in self._blocks:
                block.run = on_cpu
        else:
            self._encode_on_cpu = torch.compile(encode, dynamic=False)
            self._encode_on_gpu = torch.compile(mix_transformer_gpu.encode, dynamic=False)

    def graph_encoder(self, images: Tensor, capture: Capture) -> None:
        """Let `capture` record the stages for training images of this shape, after every other choice was made.

        Args:
            images: (B, 3, H, W) on the GPU, under the autocast of training.
        """
        kernels = select_arithmetic(self._kernels, images.device)
        own = images.permute(0, 2, 3, 1).to(arithmetic(images))
        with torch.autocast(images.device.type, enabled=False):
            self._graphed = GraphedStages(
                self.encoder,
                own,
                self._blocks,
                fused=mix_transformer_gpu.runs_fused_encoder(self._blocks, kernels, images.device),
                run_block=self._run_block,
                capture=capture,
            )

    def forget_graphs(self) -> None:
        """Run every stage eagerly again."""
        self._graphed = None

    def distances_from_head(self) -> dict[str, int]:
        """{name: how many blocks of the encoder lie between a parameter and the head} (`blocks_from_head`)."""
        depths = self.network.config.depths
        return {name: blocks_from_head(name, depths) for name, _ in self.named_parameters()}

    def stored_names(self) -> dict[str, str]:
        """Live names -> the portable names of the published files."""
        return portable_names(self)


_BLOCK = re.compile(r"(?:stages\.(\d+)\.blocks|encoder\.block\.(\d+))\.(\d+)\.")
_STAGE = re.compile(r"stages\.(\d+)\.(patch_embeddings|layer_norm)\.|encoder\.(patch_embeddings|layer_norm)\.(\d+)\.")


def blocks_from_head(name: str, depths: Sequence[int]) -> int:
    """How many encoder blocks from the head a parameter lies: 0 in the head, 1 in the last block.

    A stage's patch embedding counts with its first block, its norm with its last.

    Args:
        name: live or stored name of the parameter.
        depths: blocks per stage.
    """
    total = sum(depths)
    if "decode_head." in name:
        return 0
    block = _BLOCK.search(name)
    if block:
        stage = int(block[1] or block[2])
        return total - sum(depths[:stage]) - int(block[3])
    part = _STAGE.search(name)
    assert part is not None, f"{name} is no parameter of a SegFormer"
    stage = int(part[1] or part[4])
    first = sum(depths[:stage])
    return total - first if "patch_embeddings" in part[0] else total - first - depths[stage] + 1


def build_segformer(
    variant: str | Variant,
    class_names: Sequence[str],
    *,
    dropout: float = 0.1,
    drop_path: float = 0.1,
    freeze_backbone: bool = False,
    seed: int | None = None,
) -> SegFormer:
    """A randomly initialised model; with `seed` the same weights on every call, leaving the global generator alone."""
    config = segformer_config(variant, class_names, dropout=dropout, drop_path=drop_path)
    if seed is None:
        return SegFormer(SegformerForSemanticSegmentation(config), freeze_backbone=freeze_backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegFormer(SegformerForSemanticSegmentation(config), freeze_backbone=freeze_backbone)


def portable_names(model: SegFormer) -> dict[str, str]:
    """{name in `model.state_dict()`: name in the Hugging Face file}.

    Found by asking `save_pretrained` itself, with one number per tensor, so it holds in every transformers version.
    """
    prefix = "network."
    names = tuple(name.removeprefix(prefix) for name in model.state_dict())
    if names not in _portable:
        _portable[names] = _asked(model, names)
    return {prefix + name: stored for name, stored in _portable[names].items()}


_portable: dict[tuple[str, ...], dict[str, str]] = {}
"""{names of a network: what `save_pretrained` makes of them}; asking takes a tenth of a second."""


def _asked(model: SegFormer, names: tuple[str, ...]) -> dict[str, str]:
    probe = {name: torch.tensor([number]) for number, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:
        model.network.save_pretrained(folder, state_dict=probe)
        stored = load_file(Path(folder) / "model.safetensors")
    portable = {names[int(number)]: name for name, number in stored.items()}
    assert len(portable) == len(names), "transformers dropped or merged tensors on saving"
    return portable
