"""The record of a training run, begun at its start and completed at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.deepspeed import deepspeed_file
from segformer_spark.config.effect import without_effect
from segformer_spark.config.fields import flatten
from segformer_spark.config.image_size import size_text
from segformer_spark.config.load import ResolvedConfig, run_name
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import DataError, UserError
from segformer_spark.files.json_file import read_json_object
from segformer_spark.kernels.select import kernels_record
from segformer_spark.models.registry import model_title
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.job_variables import Fault
from segformer_spark.run.outcome import Outcome
from segformer_spark.run.record import (
    command_record,
    configuration_record,
    host_record,
    scrub,
    slurm_record,
    software_record,
)
from segformer_spark.run.system import now
from segformer_spark.training.best import BestTracker
from segformer_spark.training.extension import Extension
from segformer_spark.training.progress import Progress


class TrainingRecord:
    """training_params.yaml and .json, written at the start and completed at the end, by rank 0."""

    def __init__(
        self,
        run: RunDirectory,
        resolved: ResolvedConfig,
        group: Group,
        plan: BatchPlan,
        total_steps: int,
        steps_per_epoch: int,
        progress: Progress,
    ) -> None:
        self.run, self.group, self.resolved = run, group, resolved
        rank = {"rank": group.rank, "local_rank": group.launch.local_rank}
        hosts = group.gather({**rank, **host_record(group.device)})
        self.record: dict[str, Any] = {
            "run": run_name(resolved.config),
            "status": Outcome.RUNNING.value,
            "command": command_record(),
            "started": now(),
            "attempts": [],
            **configuration_record(resolved),
            "runtime": {
                "launcher": group.launch.launcher,
                "world_size": group.world_size,
                "batch": str(plan),
                "global_batch": plan.global_batch,
                "total_steps": total_steps,
                "steps_per_epoch": steps_per_epoch,
                "tf32": torch.backends.cuda.matmul.allow_tf32,
                "kernels": kernels_record(resolved.config.hardware.kernels, group.device),
                "deepspeed_file": deepspeed_file(resolved.config).name,
                "slurm": slurm_record(os.environ),
            },
            "hardware": hosts,
            "software": software_record() if group.is_main else {},
        }
        self.attempt = {
            "started": self.record["started"],
            "from_step": progress.step,
            "world_size": group.world_size,
            "order": progress.position.order,
            "epochs": resolved.config.training.epochs,
            "max_steps": resolved.config.training.max_steps,
            "hosts": sorted({h["host"] for h in hosts}),
        }
        if progress.step > 0:
            self._continue_record()
        self.record["attempts"].append(self.attempt)
        group.on_main(self._write)

    def announce(self, train_set: SegmentationDataset, val_set: SegmentationDataset) -> None:
        """Say what is about to run."""
        config, plan = self.resolved.config, self.record["runtime"]["batch"]
        values = flatten(config.model_dump())
        for dotted, source in self.resolved.overrides.items():
            logger.info("%s = %s from %s", dotted, values[dotted], source.removesuffix(f" {dotted}"))
        for dotted, needed in without_effect(config).items() if self.group.is_main else ():
            logger.warning("%s (%s) has no effect: it needs %s", dotted, self.resolved.provenance[dotted], needed)
        logger.info(
            "run %s: %s from %s, %s px, %s, ZeRO-%d on %d x %s, kernels %s",
            self.run.path,
            model_title(config.model),
            config.model.pretrained,
            size_text(config.data.image_size),
            config.training.precision,
            config.deepspeed.zero_stage,
            self.group.world_size,
            self.group.device.type,
            self.record["runtime"]["kernels"]["arithmetic"],
        )
        logger.info(
            "%d training and %d validation images; %s per step; %d steps",
            len(train_set),
            len(val_set),
            plan,
            self.record["runtime"]["total_steps"],
        )

    def first_step(self) -> None:
        """After a restart in place: how long it took, from the notice of the fault to the first step."""
        fault = Fault.here(os.environ)
        if fault is None or not self.group.is_main:
            return
        seconds = max(0.0, time.time() - fault.noticed)
        self.attempt["restarted_in_place"] = {"cause": fault.cause, "seconds_to_first_step": round(seconds, 2)}
        self._write()
        logger.info("back at work %.1f s after the fault was noticed: %s", seconds, fault.cause)

    def accept(self, changed_sets: Sequence[str]) -> None:
        """Record that the run goes on with other images or masks than before, in which sets (train, val)."""
        if not changed_sets:
            return
        self.attempt["accepted_changes"] = list(changed_sets)
        self._write()
        if not self.group.is_main:
            return
        logger.warning("the run goes on with other images or masks than before (%s)", ", ".join(changed_sets))
        if "val" in changed_sets:
            logger.warning("scores of two validation sets do not compare: best model and patience begin anew")

    def extend(self, extension: Extension | None) -> None:
        """Record that a finished run goes on."""
        if extension is not None:
            self.attempt["extended"] = asdict(extension)
            self._write()

    def finish(self, outcome: Outcome, progress: Progress, best: BestTracker, error: BaseException | None) -> None:
        """Complete the record."""
        self.attempt |= {"ended": now(), "status": outcome.value, "to_step": progress.step}
        self.record |= {
            "status": outcome.value,
            "ended": self.attempt["ended"],
            "steps": progress.step,
            "seconds_per_epoch": progress.epoch_seconds,
            "goodput": self._goodput(progress),
            "best": {"score": best.score, "step": best.step, "metric": best.metric},
        }
        # Which kernels a GPU's check replaced is known once the engine stands.
        self.record["runtime"]["kernels"] = kernels_record(self.resolved.config.hardware.kernels, self.group.device)
        if error is not None:
            self.record["error"] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self._write()

    def _goodput(self, progress: Progress) -> dict[str, Any]:
        """The share of time that went into steps whose result was kept (Google's ML goodput, 2024)."""
        wall = (datetime.now(UTC) - datetime.fromisoformat(self.record["started"])).total_seconds()
        useful = progress.step_seconds
        return {
            "useful_step_seconds": round(useful, 2),
            "wall_seconds": round(wall, 2),
            "goodput": round(min(1.0, useful / wall), 4) if wall > 0 else None,
            "formula": "time in training steps, those that were done again counted once / time since the first start",
        }

    def _continue_record(self) -> None:
        """A resumed run keeps its first start and the list of its attempts."""
        try:
            before = read_json_object(self.run.params_json)
            started, attempts = before["started"], before["attempts"]
            if not isinstance(started, str) or not all(isinstance(one, dict) for one in attempts):
                raise DataError(f"{self.run.params_json}: this is no record of a run")
        except (DataError, KeyError, TypeError) as error:
            logger.warning("the record of the earlier attempts is lost, and begins anew: %s", error)
            return
        self.record["started"], self.record["attempts"] = started, attempts

    def _write(self) -> None:
        if self.group.is_main:
            self.run.write_record(scrub(self.record))
