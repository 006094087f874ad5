"""Real training on the cluster: every way to be cut off ends in the weights of a run that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.slurm.conftest import Project, Reference
from tests.tiny import export_tiny
from tests.waiting import wait_for

NUM_IMAGES = 300  # the tiny model must not be done before the node is killed


def check(project: Project, job: int, expected: dict[str, torch.Tensor], restarts: int) -> dict[str, Any]:
    """The job completes after so many restarts, with these weights bit for bit; returns the record."""
    found = project.cluster.wait(job, "COMPLETED", "FAILED")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", str(restarts)), project.log(job)
    run = project.run("r")
    weights = load_file(run / "final" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "train" in line]
    assert steps == sorted(set(steps)), "no step is logged twice, none by a stray"
    assert "done: training is complete" in project.log(job).splitlines()[-1]
    record: dict[str, Any] = json.loads((run / "training_params.json").read_text())
    return record


def options(nodes: int, tasks: int) -> tuple[str, ...]:
    return (f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1")


def test_cancelled_on_one_node_and_continued_on_two(project: Project, undisturbed: Reference) -> None:
    """2 tasks on 1 node, then 2 x 1. What ran where stands in the record."""
    settings = {"LEARNING_RATE": "1e-3", "NUM_WORKERS": "1"}
    job = project.submit("segformer_train.sh", *options(1, 2), **settings)
    project.until(job, "step 4/")
    project.cluster.login("scancel", str(job))
    project.until(job, "If you cancelled it, submit it again with the same settings and RESUME=auto")
    project.cluster.wait(job, "CANCELLED")
    assert "stop requested (SIGTERM): saving a checkpoint, then leaving" in project.log(job)

    gpus = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1")  # the cluster's are none, and device is cpu
    again = project.submit("segformer_train.sh", *gpus, **settings, RESUME="auto")
    record = check(project, again, undisturbed(2, 4), restarts=0)
    assert [(h["rank"], h["host"], h["local_rank"]) for h in record["hardware"]] == [(0, "node1", 0), (1, "node2", 0)]
    assert {h["visible_devices"] for h in record["hardware"]} == {"0"}
    assert record["provenance"]["training.optimizer.lr"] == "environment LEARNING_RATE"
    assert record["runtime"]["slurm"]["SLURM_JOB_ID"] == str(again)
    assert [a["status"] for a in record["attempts"]] == ["stopped on request", "completed"]
    assert record["attempts"][1]["from_step"] == record["attempts"][0]["to_step"]


def test_a_node_cut_off_from_the_network(project: Project, undisturbed: Reference) -> None:
    """No connection closes: the ranks end by themselves, and on the node that was cut off none lives on."""
    job = project.submit("segformer_train.sh", *options(2, 1))
    project.until(job, "step 4/")
    project.cluster.cut("node2")
    said = ("no heartbeat from rank 1 on node2", "node2 is lost (no sign of life for")  # by its peer, or its agent's
    wait_for(lambda: any(text in project.log(job) for text in said), "the loss of node2 in the log")
    record = check(project, job, undisturbed(2, 4), restarts=1)
    assert "node2" not in {h["host"] for h in record["hardware"]}
    left = project.cluster.on("node2", "pgrep", "-f", "segformer_spark", check=False)
    assert left == "", "rank and agent there noticed, too"


def test_inference_over_two_nodes_killed_and_continued(project: Project, spark_root: Path, tmp_path: Path) -> None:
    """One valid zip of all images, each predicted once by whichever attempt."""
    import numpy as np

    from segformer_spark.submission.spark_format import list_images, validate_folder

    images = tmp_path / "many"
    images.mkdir()
    sources = sorted((spark_root / "stream-1-test").iterdir())
    for number in range(NUM_IMAGES):
        (images / f"image_{number:05d}_img.jpg").hardlink_to(sources[number % len(sources)])
    settings = {
        "MODEL_PATH": str(export_tiny(tmp_path / "model")),
        "TEST_IMAGES": str(images),
        "OUTPUT": str(tmp_path / "out"),
        "BATCH_SIZE": "1",
        "DEVICE": "cpu",
        "PEER_TIMEOUT": "6",
    }
    job = project.submit("segformer_inference.sh", *options(2, 1), **settings)
    wait_for(lambda: len(list((tmp_path / "out").glob("*.npz"))) >= 4, "predictions")
    project.cluster.kill_node("node2")
    found = project.cluster.wait(job, "COMPLETED", "FAILED")
    assert found["JobState"] == "COMPLETED", project.log(job)
    assert int(found["Restarts"]) >= 1
    validate_folder(tmp_path / "out", list_images(images))
    import zipfile

    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        names = archive.namelist()
        assert len(names) == len(set(names)) == NUM_IMAGES
        with archive.open(names[0]) as stream:
            assert np.load(stream).files
    assert "predicted already" in project.log(job)
    assert project.log(job).splitlines()[-1].startswith("done: inference")


def test_doctor_on_every_rank(project: Project) -> None:
    job = project.submit("segformer_doctor.sh", *options(2, 1))
    assert project.cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", project.log(job)
    log = project.log(job)
    assert "2 on 2 node(s): node1 x 1, node2 x 1" in log
    assert "all-reduce" in log
    assert "GB/s" in log
    assert "SIGUSR1, sent by scancel to the step, reaches every rank" in log
    assert "(and 1 more node(s) alike)" in log
    assert " 0 failed" in log
