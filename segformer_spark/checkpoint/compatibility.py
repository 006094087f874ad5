"""Whether a run may continue with this configuration: a change that alters the result is refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.fields import FIELDS, flatten
from segformer_spark.config.schema import Config
from segformer_spark.config.stored import stored_fields
from segformer_spark.errors import CheckpointError, ConfigError
from segformer_spark.run.console import logger


def configuration_state(
    config: Config,
    plan: BatchPlan,
    num_images: int,
    class_weights: list[float] | None,
    fidelity: str,
    data: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a checkpoint remembers to compare with later.

    Args:
        class_weights: as numbers, also where the configuration names a rule.
        fidelity: "exact", or how cached images differ from the files'.
        data: digests of the sets `train` and `val` (`data.identity`).
    """
    return {
        "config": json.loads(config.model_dump_json()),
        "global_batch": plan.global_batch,
        "forward_batch": plan.micro_batch * plan.world_size,
        "num_train_images": num_images,
        "class_weights": class_weights,
        "image_fidelity": fidelity,
        "data": data,
    }


def changed_settings(before: Config, after: Config) -> list[str]:
    """What differs of the settings that decide a run's result, as `field was x, now y`."""
    return changed_fields(_flat(before), _flat(after))


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The same for flat configurations (`config.fields.flatten`)."""
    return [
        f"{dotted} was {before[dotted]!r}, now {after[dotted]!r}"
        for dotted, field in FIELDS.items()
        if not field.resume_safe and before[dotted] != after[dotted]
    ]


def _flat(config: Config) -> dict[str, Any]:
    return flatten(json.loads(config.model_dump_json()))


def check_compatible(
    stored: dict[str, Any],
    config: Config,
    plan: BatchPlan,
    present: dict[str, Any],
    *,
    accept_changes: bool = False,
    extends: Collection[str] = (),
) -> list[str]:
    """Compare a checkpoint's configuration with the present one (`configuration_state`).

    Fields marked `resume_safe` may differ. So may ranks, stage and micro-batch, if the global batch is the same.

    Args:
        accept_changes: other images or masks are no difference.
        extends: settings that may differ as well: those of its length, where a finished run is to go on.

    Returns:
        Which sets, of train and val, are others than before.

    Raises:
        CheckpointError: something that decides the result differs; each difference is named.
    """
    try:
        before = stored_fields(stored["config"])
    except ConfigError as error:
        raise CheckpointError(
            f"the checkpoint is of another version of this package, whose configuration is not understood: {error}"
        ) from error
    now = _flat(config)
    changed = changed_fields({**before, **{name: now[name] for name in extends}}, now)
    if stored["global_batch"] != plan.global_batch:
        changed.append(
            f"the global batch was {stored['global_batch']}, now {plan}; "
            f"set training.global_batch_size={stored['global_batch']}"
        )
    forward_batch = plan.micro_batch * plan.world_size
    joined = config.training.accumulation == "exact"
    if not changed and not joined and stored["forward_batch"] != forward_batch:
        logger.warning(
            "the run had %d images in each forward pass over all ranks, now %d: batch norm and Dice see them together, "
            "so the losses will differ slightly from an uninterrupted run",
            stored["forward_batch"],
            forward_batch,
        )
    sets = _changed_sets(stored, present)
    if not accept_changes:
        changed += sets.values()
    for key, name in {"class_weights": "class weights were", "image_fidelity": "training images were"}.items():
        if stored[key] != present[key]:
            changed.append(f"the {name} {stored[key]}, now {present[key]}")
    if changed:
        accept = "; --accept-changes continues with the changed data" if sets and changed == list(sets.values()) else ""
        raise CheckpointError(
            "the run cannot be resumed with another configuration:\n  "
            + "\n  ".join(changed)
            + f"\nUndo the change, or start a new run with another experiment.name{accept}."
        )
    return list(sets)


def _changed_sets(stored: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, str]:
    """{train or val: how it differs}. Checkpoints of before 0.2 know the number of training images alone."""
    before, now = stored.get("data") or {}, present["data"] or {}
    changed = {
        name: f"the {'training' if name == 'train' else 'validation'} set has other images or masks (sha256 "
        f"{before[name][:12]}, now {now[name][:12]})"
        for name in ("train", "val")
        if name in before and name in now and before[name] != now[name]
    }
    if stored["num_train_images"] != present["num_train_images"]:
        changed["train"] = (
            f"the training split had {stored['num_train_images']} images, now {present['num_train_images']}"
        )
    return changed
