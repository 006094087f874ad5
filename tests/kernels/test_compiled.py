"""Every kernel compiled to machine code for GPUs that are not here: it compiles, and no register spills to memory."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

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
from segformer_spark.kernels.registry import NO_TRITON

pytestmark = pytest.mark.skipif(NO_TRITON, reason="torch's builds without CUDA bring no Triton")

MAPS, FP32 = "*maps", "*fp32"
LOSS = {"WEIGHTED": True, "SMOOTH": True, "STRIP": 4}
CLASSIFY = {"DROPOUT": True, "ROWS": 32, "PRECISION": "ieee", "WIDEN": False}
POINTERS = {
    **dict.fromkeys(("tokens", "branch", "total", "normed", "of_normed", "of_total", "of_tokens", "of_branch"), MAPS),
    **dict.fromkeys(("values", "logits", "grad", "out", "finest", "second", "third", "fourth", "slope"), MAPS),
    **dict.fromkeys(("row_start", "col_start"), "*i32"),
    "labels": "*u8",
    "ids": "*u8",
    "images": "*u8",
    "classifier": MAPS,
    "seed": "*i64",
}
NUMBERS = {"eps": "fp32", "row_scale": "fp32", "col_scale": "fp32", "smoothing": "fp32", "keep_scale": "fp32"}
NUMBERS |= {f"{what}_{color}": "fp32" for what in ("mean", "std") for color in "rgb"}
INTEGERS = {
    *(
        "N",
        "C",
        "D",
        "K",
        "H",
        "W",
        "h",
        "w",
        "h2",
        "w2",
        "h3",
        "w3",
        "h4",
        "w4",
        "per_image",
        "lines",
        "groups",
        "dropped",
    ),
    *("ignore", "strips", "pixels"),
}

KERNELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    **{
        f"{name} of {channels} channels": (
            kernel,
            {**constants, "SCALED": True, "ROWS": 2048 // channels, "CHANNELS": channels},
            4,
        )
        for channels in (32, 64, 512)
        for name, kernel, constants in (
            ("add_norm", add_norm._forward_kernel, {"ADDS": True}),
            ("add_norm_backward", add_norm._backward_kernel, {"ADDED": True, "BRANCH": True}),
        )
    },
    "depthwise_gelu": (depthwise_gelu._forward_kernel, {"KEEP": True, "PIXELS": 16, "CHANNELS": 64}, 4),
    "depthwise_gelu_backward": (depthwise_gelu._backward_kernel, {"PIXELS": 8, "CHANNELS": 64, "TAPS": 16}, 4),
    **{
        f"{name} of {classes} classes": (kernel, {**LOSS, "LANES": min(128, 1024 // classes), "BLOCK_C": classes}, 4)
        for classes in (4, 256)
        for name, kernel in (
            ("loss_sums", segmentation_loss._forward_kernel),
            ("loss_sums_backward", segmentation_loss._backward_kernel),
        )
    },
    **{
        f"class_ids of {classes} classes": (
            class_ids._kernel,
            {"STRIP": 4, "LANES": min(128, 1024 // classes), "BLOCK_C": classes},
            4 if classes <= 128 else 8,
        )
        for classes in (4, 256)
    },
    "normalize": (normalize._kernel, {"BLOCK": 1024}, 4),
    "loss_sums_combined": (segmentation_loss._combine_kernel, {"STRIP": 4, "BLOCK": 1024}, 4),
}
WITH_PRODUCTS: dict[str, tuple[Any, dict[str, Any], int]] = {
    **{
        f"{name} of {classes} classes": (
            kernel,
            {**CLASSIFY, "CLASSES": classes, "COLUMNS": 64 if classes <= 32 else 32},
            4 if classes <= 32 else 8,
        )
        for classes in (16, 32, 64, 256)
        for name, kernel in (
            ("classify", classify._forward_kernel),
            ("classify_sums", classify._sums_kernel),
            ("classify_backward", classify._backward_kernel),
        )
    },
    **{
        f"level_logits of {classes} classes": (
            level_logits._kernel,
            {
                **{name: value for name, value in level_logits.tile(64, classes).items() if name != "num_warps"},
                **{"PRECISION": "ieee", "WIDEN": False},
            },
            level_logits.tile(64, classes)["num_warps"],
        )
        for classes in (3, 150)
    },
    "merge_levels": (
        merge_levels._merge_kernel,
        {"PIXELS": 32, "CHANNELS": 64, "INNER": 64, "PRECISION": "ieee", "WIDEN": False},
        4,
    ),
}
"""Triton multiplies matrices with the tensor cores of Ampere and later only; before, plain torch does it."""


OF_PRODUCTS = {"weight": MAPS, "slope": FP32}
"""Where the kernels that multiply name something else by the same name."""


def compiled(
    kernel: Any, constants: dict[str, Any], warps: int, capability: int, pointers: dict[str, str]
) -> dict[str, int]:
    """Registers and spilled bytes of a thread, shared memory of a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    maps = "*fp16" if capability < 80 else "*bf16"
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS or name in INTEGERS:
            signature[name] = NUMBERS.get(name, "i32")
        else:
            signature[name] = pointers.get(name, FP32).replace(MAPS, maps)
    built = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", said)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
    return {"registers": registers, "spilled": stack, "shared": built.metadata.shared}


@pytest.mark.sweep
@pytest.mark.parametrize("capability", [70, 80, 90])
def test_no_register_is_spilled(capability: int, record_property: Any) -> None:
    found = {name: compiled(*own, capability, POINTERS) for name, own in KERNELS.items()}
    if capability >= 80:
        found |= {n: compiled(*own, capability, POINTERS | OF_PRODUCTS) for n, own in WITH_PRODUCTS.items()}
    record_property(f"sm_{capability}", json.dumps(found))
    assert {name: own for name, own in found.items() if own["spilled"]} == {}
    assert all(own["registers"] <= 255 and own["shared"] <= 64 * 1024 for own in found.values())
