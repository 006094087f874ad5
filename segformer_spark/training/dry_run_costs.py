"""What `train --dry-run` measures: memory and time of a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.image_size import size_text
from segformer_spark.config.schema import Config, LossConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.distributed.devices import choose_device, set_threads
from segformer_spark.losses.build import build_loss
from segformer_spark.run.console import duration, progress_bar
from segformer_spark.training.measure import NUM_PASSES, estimate_memory, measure_pass, measured_parts, step_seconds
from segformer_spark.training.plan import check_model, single_image_note

_MIB = 2**20


def measured_costs(
    config: Config, plan: BatchPlan, dataset: SegmentationDataset, loss_config: LossConfig, total_steps: int
) -> Iterator[str]:
    """Memory and time from one measured pass, of a whole micro-batch on a GPU and of one image on a CPU.

    Raises:
        UserError: loss or model cannot be used for training either.
    """
    set_threads(config.hardware.threads, 1)
    device = choose_device(config.hardware.device, 0)
    build_loss(loss_config, len(dataset.classes), IGNORE_INDEX)
    model, loss = measured_parts(config, dataset.classes.names)
    check_model(config, plan, model)
    note = single_image_note(config, plan, model)
    if note is not None:
        yield f"warning: {note}"
    num_images = plan.micro_batch if device.type == "cuda" else model.min_batch
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"
    with progress_bar(NUM_PASSES, "measuring a pass") as advance:
        cost = measure_pass(
            *(model, loss, num_images, config.data.input_size, device, config.training.precision), advance=advance
        )
    memory = estimate_memory(model, config, plan, cost)
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "averaged weights": memory.average,
        "activations": memory.activations,
        "head's activations of the other micro-batches": memory.joined_head,
        "workspace": memory.workspace,
        "caches of the libraries": memory.libraries,
        "ZeRO's buffer": memory.bucket,
    }
    listed = ", ".join(f"{name} {value / _MIB:.0f}" for name, value in parts.items() if value)
    yield f"memory per device in MiB: {listed}; {memory.total / _MIB:.0f} in all, on top of the imports"
    yield f"  activations measured on {num_images} image(s) at {size_text(config.data.image_size)} px on {where}"
    seconds = step_seconds(config, plan, cost)
    yield f"time per step: {seconds:.2f} s on {where}, communication and loading not included"
    whole = seconds * total_steps
    kind = "GPU" if device.type == "cuda" else "device"
    yield f"time for {total_steps} steps: {duration(whole)}, {whole * plan.world_size / 3600:.1f} {kind}-hours"
    if device.type != "cuda":
        yield "  this is this CPU's speed, not a GPU's: run the dry run in a short GPU job to plan hours there"
