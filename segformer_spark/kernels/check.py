"""Every kernel against its plain formula on small random inputs, on the device at hand.

Triton's interpreter shows no race, and a compiler may be wrong for one card: on a GPU this runs before the first step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from segformer_spark.errors import DataError
from segformer_spark.files.atomic import write_json
from segformer_spark.files.json_file import read_json_object
from segformer_spark.kernels import (
    add_norm,
    class_ids,
    classify,
    depthwise_gelu,
    level_logits,
    merge_levels,
    normalize,
    segmentation_loss,
)
from segformer_spark.kernels.registry import NO_TRITON, OPERATIONS, Operation, replace_by_plain, runs_fused
from segformer_spark.run.console import logger

MODULES = (add_norm, class_ids, classify, depthwise_gelu, level_logits, merge_levels, normalize, segmentation_loss)

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference over the largest value; four units of the last place in the narrow types."""

LIMITS = {str(dtype).removeprefix("torch."): limit for dtype, limit in TOLERANCE.items()}
"""The same by the types' names, as `differences` has them."""

_PARTS = {"loss_sums": 1, "classify_sums": 2, "merge_levels": 1, "add_norm_backward": 1, "depthwise_gelu_backward": 1}
"""How many of an operation's last results have a row per program: their sum counts."""


def cases(dtype: torch.dtype, device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """{operation: arguments}: odd sizes, one class and many, ignored pixels, all pixels ignored."""
    generator = torch.Generator().manual_seed(0)

    def real(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(of).to(device)

    found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in OPERATIONS}
    for tokens, channels, images in ((30, 24, 3), (66, 64, None), (39, 320, 3)):
        scale = None if images is None else torch.rand(images, generator=generator).to(device) + 0.5
        maps, norm = real(tokens, channels, of=dtype), (real(channels), real(channels))
        found["add_norm"].append((maps, real(tokens, channels, of=dtype), real(channels), scale, *norm, 1e-6))
        found["layer_norm"].append((maps, *norm, 1e-6, dtype))
        mean, deviation = maps.float().mean(1), maps.float().var(1, correction=0).add(1e-6).rsqrt()
        for other in (real(tokens, channels, of=dtype), None):
            grad = real(tokens, channels, of=dtype)
            found["add_norm_backward"].append((grad, other, maps, mean, deviation, norm[0], scale))
    for height, width in ((5, 7), (40, 33)):
        pixels_of_bytes = torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)
        found["normalize"].append((pixels_of_bytes.to(device), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for images, height, width, channels in ((2, 3, 5, 24), (1, 2, 20, 70), (2, 1, 1, 16)):
        maps, rest = real(images * height * width, channels, of=dtype), (real(channels), real(channels, 9))
        found["depthwise_gelu"].append((maps, *rest, real(channels), images, height, width, width != 1))
        grad, slope = (real(len(maps), channels, of=dtype) for _ in range(2))
        found["depthwise_gelu_backward"].append((grad, slope, maps, *rest, images, height, width))
    for sides, channels, wide in (((8, 4, 2, 1), 16, 24), ((13, 7, 4, 2), 40, 72)):
        finest, *others = (real(2, side, side + 3, wide, of=dtype) for side in sides)
        levels = (finest[..., :channels].contiguous(), real(wide, channels, of=dtype), *others)
        found["merge_levels"].append(levels)
        classes = 3 if channels == 16 else 150
        found["level_logits"].append((*levels, real(classes, wide, of=dtype), real(classes)))
    for pixels, channels, classes, dropped in ((70, 24, 1, 0), (70, 72, 19, 6554), (33, 128, 150, 30000)):
        values, weight = real(pixels, channels, of=dtype), real(classes, channels, of=dtype)
        norm3, seed = [real(channels) for _ in range(3)], torch.tensor([2**40 + 7]).to(device)
        shared, grad = (values, *norm3, weight), real(pixels, classes, of=dtype)
        found["classify"].append((*shared, real(classes), seed, dropped))
        found["classify_sums"].append((grad, *shared, seed, dropped))
        found["classify_backward"].append((grad, *shared, seed, real(channels), real(channels), dropped))
    for height, width, classes, size, ignored in (
        (6, 5, 3, (24, 20), 0.1),
        (5, 4, 19, (17, 15), 0.5),
        (2, 6, 150, (7, 24), 0.0),
        (3, 2, 1, (9, 8), 0.1),
        (2, 2, 3, (8, 8), 1.0),
    ):
        logits = real(1, height, width, classes, of=dtype)
        labels = torch.randint(0, classes, (1, *size), generator=generator, dtype=torch.uint8)
        labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
        weights = None if classes == 3 else torch.rand(classes, generator=generator).to(device) + 0.5
        batch = (logits, labels.to(device), weights, 0.1 if classes == 19 else 0.0, 255)
        found["class_ids"].append((logits, *size))
        found["loss_sums"].append(batch)
        found["loss_sums_backward"].append((real(2 + 3 * classes), *batch))
    return found


def difference(operation: Operation, arguments: tuple[Any, ...]) -> float:
    """The largest difference of its kernel from its formula, over the largest value of each result."""
    fused, plain = (tree_leaves(function(*arguments)) for function in (operation.fused, operation.plain))
    for index in range(1, _PARTS.get(operation.name, 0) + 1):
        fused[-index], plain[-index] = fused[-index].sum(0), plain[-index].sum(0)
    worst = 0.0
    for found, expected in zip(fused, plain, strict=True):
        if expected.numel():
            apart = (found.double() - expected.double()).abs().amax()
            worst = max(worst, float(apart / expected.double().abs().amax().clamp_min(0.1)))
    return worst


def differences(device: torch.device, types: Sequence[torch.dtype]) -> dict[str, dict[str, float]]:
    """{operation: {type: difference}} of the operations that run on this device."""
    found: dict[str, dict[str, float]] = {}
    with _strict_products():
        for dtype in types:
            for name, own in cases(dtype, device).items():
                if runs_fused([name], device):
                    worst = max(difference(OPERATIONS[name], arguments) for arguments in own)
                    found.setdefault(name, {})[str(dtype).removeprefix("torch.")] = worst
    return found


@contextmanager
def _strict_products() -> Iterator[None]:
    """No TF32 in the formulas: a run that asks for it has its kernels judged as any other."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def wrong(found: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """{operation: what is wrong with it} among `differences`; NaN is wrong."""
    return {
        name: ", ".join(f"{dtype} differs by {value:.1e}" for dtype, value in own.items() if not value <= LIMITS[dtype])
        for name, own in found.items()
        if any(not value <= LIMITS[dtype] for dtype, value in own.items())
    }


def check_kernels(device: torch.device, gather: Callable[[dict[str, str]], list[dict[str, str]]]) -> dict[str, str]:
    """Check what runs on a GPU, and let plain torch take the place of what is wrong on any rank. Collective.

    Args:
        gather: gives every rank's argument to all ranks.

    Returns:
        {operation: why plain torch takes its place}.
    """
    own = wrong(remembered_differences(device)) if device.type == "cuda" and not NO_TRITON else {}
    return _agree(own, gather)


def _agree(own: dict[str, str], gather: Callable[[dict[str, str]], list[dict[str, str]]]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for rank, theirs in enumerate(gather(own)):
        for name, reason in theirs.items():
            reasons.setdefault(name, f"{reason} from its plain formula on rank {rank}'s GPU")
    replace_by_plain(reasons)
    for name, reason in reasons.items():
        logger.warning("kernel %s: %s; plain torch takes its place in this run", name, reason)
    return reasons


def remembered_differences(device: torch.device) -> dict[str, dict[str, float]]:
    """`differences` on this card with these kernels, measured once and kept beside what Triton has compiled."""
    import triton

    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in MODULES)
    about = f"{torch.cuda.get_device_name(device)} {torch.__version__} {triton.__version__} {torch.version.cuda}"
    name = hashlib.sha256(about.encode() + sources).hexdigest()[:16]
    path = Path(triton.knobs.cache.dir) / f"segformer-spark-{name}.json"
    try:
        known: dict[str, dict[str, float]] = read_json_object(path)
    except DataError:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        known = differences(device, list(TOLERANCE) if has_bf16 else [torch.float32, torch.float16])
        with suppress(OSError):  # it is measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return known
