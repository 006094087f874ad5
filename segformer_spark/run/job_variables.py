"""Environment variables of a rank that an agent started (restart/agent.py). Such a rank has torchrun's beside them,
without a port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GENERATION = "JOB_AGENT_GENERATION"
"""How often the ranks of this job's attempt were restarted in place."""

FAULT = "JOB_AGENT_FAULT"
"""After a restart in place: when the fault was noticed, in seconds since the epoch, and what it was."""


@dataclass(frozen=True)
class Fault:
    """Why the ranks were restarted in place, and when that was noticed, in seconds since the epoch."""

    noticed: float
    cause: str

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> Fault | None:
        """Before this process; None where it was not restarted in place."""
        noticed, _, cause = environment.get(FAULT, "").partition(" ")
        try:
            return cls(float(noticed), cause)
        except ValueError:
            return None
