"""Statuses that slurm/common.sh writes as numbers are those of the package."""

from __future__ import annotations

import re

from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.exit_codes import ExitCode, RequeueVerdict

COMMON = (PROJECT_ROOT / "slurm" / "common.sh").read_text()


def test_verdicts_of_the_batch_script() -> None:
    branches = re.search(r'case "\$verdict" in\n(.*?)esac', COMMON, re.DOTALL)
    assert branches is not None
    numbers = [
        (int(number), text)
        for line in branches[1].strip().splitlines()
        for number in re.findall(r"\d+", line.split(")")[0])
        for text in [line.partition("#")[2].strip()]
    ]
    assert numbers == [
        (RequeueVerdict.COMPLETE, "complete, or given up"),
        (RequeueVerdict.GIVEN_UP, "complete, or given up"),
        (RequeueVerdict.NOT_OURS, "SLURM starts no step any more"),
    ]


def test_a_lost_node_does_not_look_like_success() -> None:
    found = re.search(r"\(\(status == 0 && verdict != (\d+)\)\) && status=(\d+)", COMMON)
    assert found is not None
    assert tuple(map(int, found.groups())) == (RequeueVerdict.COMPLETE, ExitCode.PEER_LOST)


def test_statuses_are_those_that_users_know() -> None:
    """Scripts of users compare with the numbers."""
    assert [int(code) for code in ExitCode] == [0, 1, 2, 70, 85, 86, 87, 88]
