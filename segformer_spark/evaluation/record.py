"""What results say of how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from segformer_spark.evaluation.session import Session
from segformer_spark.files.digest import sha256_of
from segformer_spark.kernels.select import kernels_record
from segformer_spark.run.directory import training_record
from segformer_spark.run.record import command_record, scrub, software_record
from segformer_spark.run.system import now


def session_record(session: Session, hosts: Sequence[Mapping[str, Any]], started: str) -> dict[str, Any]:
    """Model, training, command, times, hardware and software, ready for JSON and without machine paths.

    Args:
        hosts: `host_record` of every rank.
        started: when the work began.
    """
    record = {
        "model": str(session.folder),
        "models": [{"folder": str(one.folder), "sha256": sha256_of(one.weights_file)} for one in session.models],
        "card": asdict(session.card),
        "training": training_record(session.folder),
        "command": command_record(),
        "started": started,
        "ended": now(),
        "world_size": session.group.world_size,
        "hardware": list(hosts),
        "kernels": kernels_record("auto", session.group.device),
        "software": software_record(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(scrub(record)))
    return plain
