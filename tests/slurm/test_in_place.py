"""Restarts in place on the cluster: the job keeps its nodes, or takes a spare one, and is not requeued."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.conftest import Project, Reference

ONE_EACH = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


def check(
    project: Project, job: int, expected: dict[str, torch.Tensor], restarts: int, *, exactly: bool = True
) -> None:
    found = project.cluster.wait(job, "COMPLETED", "FAILED", "NODE_FAIL", "CANCELLED")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "0"), project.log(job)
    weights = load_file(project.run("r") / "final" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(
            weights[name], tensor, **({"rtol": 0, "atol": 0} if exactly else {"rtol": 0, "atol": 0.05})
        )
    record = json.loads((project.run("r") / "training_params.json").read_text())
    back = [a["restarted_in_place"]["seconds_to_first_step"] for a in record["attempts"] if "restarted_in_place" in a]
    assert len(back) == restarts
    print(f"seconds from the notice of the fault to the first step: {back}")


@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.sweep)])
def test_a_killed_rank_starts_again_in_the_same_step(tasks: int, project: Project, undisturbed: Reference) -> None:
    """Of two ranks, and of four: the weights then agree with those of two to rounding alone."""
    own = (f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1")
    job = project.submit("segformer_train.sh", "--nodes=2", *own, BATCH_SIZE=str(2 // tasks))
    project.until(job, "step 6/")
    attempts = sorted((project.run("r") / "attempts").glob("0*.json"))
    pid = json.loads(attempts[-1].read_text())["pid"]
    node = json.loads(attempts[-1].read_text())["host"]
    project.cluster.on(node, "kill", f"-{signal.SIGKILL.value}", str(pid))
    project.until(job, "restarting in place, number 1")
    check(project, job, undisturbed(2, 4), 1, exactly=tasks == 1)


def test_a_spare_node_takes_over_for_a_lost_one(project: Project, undisturbed: Reference) -> None:
    """Two ranks on three nodes; the second node loses its power, and Slurm takes it for down while the ranks go on."""
    job = project.submit("segformer_train.sh", "--nodes=3", "--no-kill", *ONE_EACH, SPARE_NODES="1")
    project.until(job, "step 6/")
    nodes = project.cluster.job(job)["NodeList"]
    assert nodes == "node[1-3]"
    project.cluster.kill_node("node2")
    project.until(job, "node2 is lost")
    project.cluster.login("scontrol", "update", "nodename=node2", "state=down", "reason=test", check=False)
    check(project, job, undisturbed(2, 4), 1)
    record = json.loads((project.run("r") / "training_params.json").read_text())
    assert [host["host"] for host in record["hardware"]] == ["node1", "node3"]
    assert "done: training is complete" in project.log(job)
