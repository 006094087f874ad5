"""`export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_verb, positive

_FORMATS = ("onnx", "torch-export", "safetensors")


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "export",
        "A run's model for other programs: ONNX (fp32 or int8), torch.export, or a folder for the Hub.",
        "segformer-spark export runs/leaves --format onnx --int8",
        export,
    )
    parser.add_argument("model", type=Path, help="run directory, or exported model")
    parser.add_argument("--format", choices=_FORMATS, default="onnx", help="(default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=None, help="file, or folder for safetensors (default: in <run>/export)"
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="take RGB as uint8 (batch, 3, height, width) and normalise it inside",
    )
    parser.add_argument("--int8", action="store_true", help="with onnx: quantise for CPUs, calibrated on images")
    parser.add_argument(
        "--calibration",
        type=Path,
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="with --int8: files, folders, patterns (default: validation images of the run)",
    )
    parser.add_argument(
        "--num-calibration", type=positive, default=32, help="with --int8: how many images (default: %(default)s)"
    )


def export(arguments: argparse.Namespace) -> int:
    """Write the model."""
    from segformer_spark.config.schema import HardwareConfig
    from segformer_spark.run.directory import locate_model, model_name
    from segformer_spark.verbs.launch import joined

    if arguments.format != "onnx" and arguments.int8:
        raise UserError(f"--int8 goes with --format onnx, the format is {arguments.format}")
    if arguments.format == "safetensors" and arguments.with_preprocessing:
        raise UserError("--with-preprocessing: safetensors hold weights alone; give --format onnx or torch-export")
    if arguments.calibration and not arguments.int8:
        raise UserError("--calibration goes with --int8")
    model, run = locate_model(arguments.model)
    with joined(HardwareConfig(device="cpu")) as group:
        from segformer_spark.export.run_export import SUFFIXES, ExportOptions, run_export

        output = arguments.output
        if output is None:
            if run is None:
                raise UserError(f"{model} does not lie in a run directory: give --output")
            name = f"{run.name}-{model_name(model)}" + ("-int8" if arguments.int8 else "")
            output = run / "export" / f"{name}{SUFFIXES[arguments.format]}"
        run_export(
            ExportOptions(
                model=arguments.model,
                format=arguments.format,
                output=output,
                preprocessing=arguments.with_preprocessing,
                int8=arguments.int8,
                calibration=arguments.calibration,
                num_calibration=arguments.num_calibration,
            ),
            group,
        )
    return 0
