"""Submitting, settings, requeueing and logs: mechanics with a stand-in for training."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from segformer_spark.checkpoint.names import newest_step
from segformer_spark.config.load import PROJECT_ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Project
from tests.waiting import wait_for

SCRIPTS = sorted(path.name for path in (PROJECT_ROOT / "slurm").glob("*.sh") if "#SBATCH" in path.read_text())
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")
ONE = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


def last_lines(project: Project, job: int, num: int = 6) -> str:
    return "\n".join(project.log(job).splitlines()[-num:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_can_be_submitted(quick_project: Project, script: str) -> None:
    done = quick_project.cluster.login(
        "sbatch", "--test-only", f"slurm/{script}", "x.yaml", cwd=quick_project.root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


@pytest.mark.long
def test_settings_reach_every_rank_and_survive_requeues(quick_project: Project) -> None:
    """Stopped once by each of the signals; complete after the last attempt, and not requeued then."""
    settings = {"SEGFORMER_VARIANT": "b3", "IMAGE_SIZE": "640", "MAX_STEPS": "20", "PROGRAM_UNTIL": "may-end"}
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, **settings)
    for restart, name in enumerate(("USR1", "TERM", "USR2")):
        wait_for(lambda: len(quick_project.facts(restart=restart)) == 4, "four ranks")  # noqa: B023
        quick_project.until(job, f"step {newest_step(quick_project.run('r') / 'checkpoints') + 2}/")
        quick_project.cluster.login("scancel", f"--signal={name}", str(job))
        quick_project.until(job, f"attempt {restart + 2},")
    (quick_project.root / "may-end").touch()
    found = quick_project.cluster.wait(job, "COMPLETED")
    assert found["Restarts"] == "3"
    for attempt in range(4):
        ranks = quick_project.facts(restart=attempt)
        assert sorted((r["rank"], r["host"], r["local_rank"]) for r in ranks) == [
            (0, "node1", 0), (1, "node1", 1), (2, "node2", 0), (3, "node2", 1),
        ]  # fmt: skip
        assert {(r["variant"], r["image_size"], r["offline"], r["resume"]) for r in ranks} == {
            ("b3", 640, "1", "auto" if attempt else None)
        }
        assert all(r["deadline"] > 0 for r in ranks), "the time limit is known to the ranks"
    attempts = [json.loads(path.read_text()) for path in sorted((quick_project.run("r") / "attempts").glob("*.json"))]
    assert [a["outcome"] for a in attempts] == ["stopped on request"] * 3 + ["completed"]
    log = quick_project.log(job)
    assert [log.count(f"attempt {n},") for n in range(1, 6)] == [1, 1, 1, 1, 0], "one file, appended"
    assert log.count("requeueing job") == 3
    assert "done: training is complete. Next: MODEL_PATH=runs/r sbatch slurm/segformer_eval.sh" in last_lines(
        quick_project, job, 1
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("IMAGE_SIZE", "big", "image_size"),
        ("SEGFORMER_COLOUR", "red", "environment variable SEGFORMER_COLOUR is not known"),
        ("IMAGE_SZIE", "640", "did you mean IMAGE_SIZE?"),
    ],
)
def test_a_wrong_setting_stops_the_job_before_training(
    quick_project: Project, variable: str, value: str, message: str
) -> None:
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, **{variable: value})
    found = quick_project.cluster.wait(job, "FAILED", "COMPLETED", "CANCELLED")
    assert found["JobState"] == "FAILED"
    assert found["Restarts"] == "0"
    assert message in last_lines(quick_project, job, 3)
    assert quick_project.log(job).count("error: ") == 1, "said once, not by every rank"
    assert quick_project.facts() == []


@pytest.mark.long
def test_a_run_that_always_dies_at_the_same_step_is_given_up(quick_project: Project) -> None:
    job = quick_project.submit("segformer_train.sh", *ONE, MAX_STEPS="9", PROGRAM_CRASH="3")
    quick_project.until(job, "not requeued")
    found = quick_project.cluster.wait(job, "FAILED")
    # The first attempt went from step 0 to a checkpoint at 2, and so moved on.
    assert found["Restarts"] == "3"
    assert "3 attempts in a row began at step 2 and saved nothing beyond it" in last_lines(quick_project, job, 2)
    assert "RuntimeError: crash at step 3" in quick_project.log(job)


@pytest.mark.long
def test_a_run_that_dies_now_and_then_completes(quick_project: Project) -> None:
    """Each attempt is given another step to die at, later than its checkpoint."""
    binary = Path(quick_project.environment["VENV"]) / "bin" / "python"
    step = "PROGRAM_CRASH=$((3 + 2 * ${SLURM_RESTART_COUNT:-0})); export PROGRAM_CRASH"
    binary.write_text(binary.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{step}\n"))
    job = quick_project.submit("segformer_train.sh", *ONE, MAX_STEPS="8")
    found = quick_project.cluster.wait(job, "COMPLETED", "FAILED")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "3")


@pytest.mark.long
def test_the_time_limit_is_near(quick_project: Project) -> None:
    """The signal comes from SLURM itself: 15 s after the start here, or at one of its looks at limits every 30 s."""
    times = ("--time=4", "--signal=USR1@225")
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, *times, MAX_STEPS="2000")
    quick_project.until(job, f"requeueing job {job}: stopped with its state saved")
    saved = newest_step(quick_project.run("r") / "checkpoints")
    assert f"the run resumes from step {saved}" in quick_project.log(job)
    wait_for(lambda: len(quick_project.facts(restart=1)) == 4, "the second attempt")
    assert all(0 < fact["deadline"] - time.time() < 300 for fact in quick_project.facts(restart=1))
    quick_project.until(job, f"step {saved + 1}/")
    quick_project.cluster.login("scancel", str(job))


@pytest.mark.long
def test_a_cancelled_job_saves_and_does_not_come_back(quick_project: Project) -> None:
    """Unless it was asked for."""
    for name, settings in (("a", {}), ("b", {"REQUEUE_ON_CANCEL": "1"})):
        settings |= {"MAX_STEPS": "4", "PROGRAM_UNTIL": "may-end"}
        job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, RUN_NAME=name, **settings)
        quick_project.until(job, "step 3/")
        quick_project.cluster.login("scancel", str(job))
        quick_project.until(job, "resumes from step")
        saved = newest_step(quick_project.run(name) / "checkpoints")
        assert saved >= 3
        if name == "a":
            assert quick_project.cluster.wait(job, "CANCELLED")["Restarts"] == "0"
            log = quick_project.log(job)
            assert (
                f"stopped with its state saved; the run resumes from step {saved}, but SLURM is ending this job" in log
            )
            assert "If you cancelled it, submit it again with the same settings and RESUME=auto" in log
        else:
            (quick_project.root / "may-end").touch()
            assert quick_project.cluster.wait(job, "COMPLETED")["Restarts"] == "1"


def test_the_controller_restarts_in_mid_job(quick_project: Project) -> None:
    cluster = quick_project.cluster
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, MAX_STEPS="4", PROGRAM_UNTIL="may-end")
    quick_project.until(job, "step 3/")
    cluster.kill_daemon("ctl", signal.SIGTERM)
    quick_project.until(job, "step 12/")
    cluster.start_daemon("ctl")
    wait_for(lambda: "is UP" in cluster.login("scontrol", "ping", check=False).stdout, "the controller")
    (quick_project.root / "may-end").touch()
    assert cluster.wait(job, "COMPLETED")["Restarts"] == "0"
    assert len(quick_project.facts()) == 4


def test_two_jobs_on_one_node_do_not_meet(quick_project: Project) -> None:
    options = (*TWO_BY_TWO[1:], "--nodes=1", "--nodelist=node1")
    settings = {"MAX_STEPS": "4", "PROGRAM_UNTIL": "may-end"}
    jobs = [quick_project.submit("segformer_train.sh", *options, RUN_NAME=name, **settings) for name in ("a", "b")]
    for job in jobs:
        quick_project.until(job, "step 4/")
    (quick_project.root / "may-end").touch()
    for job in jobs:
        quick_project.cluster.wait(job, "COMPLETED")
    ports = {fact["port"] for fact in quick_project.facts(host="node1")}
    assert len(ports) == 2


def test_the_same_run_twice_at_once(quick_project: Project) -> None:
    """The second is refused, by name of the job that has it; the first is not disturbed."""
    settings = {"MAX_STEPS": "4", "PROGRAM_UNTIL": "may-end"}
    first = quick_project.submit("segformer_train.sh", *ONE, "--nodelist=node1", **settings)
    quick_project.until(first, "step 2/")
    second = quick_project.submit("segformer_train.sh", *ONE, "--nodelist=node2", RESUME="auto", **settings)
    quick_project.cluster.wait(second, "FAILED")
    (quick_project.root / "may-end").touch()
    assert f"is being trained at this moment by job {first} on node1" in last_lines(quick_project, second)
    assert quick_project.cluster.wait(first, "COMPLETED")["Restarts"] == "0"


def test_an_error_of_another_rank_is_found_by_rank_and_host(quick_project: Project) -> None:
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, MAX_STEPS="9", PROGRAM_CRASH="1:3")
    quick_project.until(job, "crash at step 1")
    quick_project.cluster.login("scancel", str(job))
    errors = [line for line in quick_project.log(job).splitlines() if "crash at step 1" in line]
    assert errors[0] == "[rank 3 on node2] RuntimeError: crash at step 1"


@pytest.mark.parametrize("name", ["two\nlines", "a b", "x;y", "$(id)"])
def test_odd_job_names_are_refused(quick_project: Project, name: str) -> None:
    job = quick_project.submit("segformer_train.sh", f"--job-name={name}", "--output=odd-%j.log", *ONE)
    quick_project.cluster.wait(job, "FAILED")
    assert "use up to 64 letters, digits" in quick_project.log(job)
    assert quick_project.facts() == []


def test_gpus(quick_project: Project) -> None:
    """One task per GPU that was granted, all of them visible to each; the record says which each rank took."""
    job = quick_project.submit(
        "segformer_train.sh", "--nodes=2", "--gpus-per-node=2", "--cpus-per-task=1", MAX_STEPS="2"
    )
    quick_project.cluster.wait(job, "COMPLETED")
    seen = sorted((f["rank"], f["host"], f["local_rank"], f["visible"]) for f in quick_project.facts(verb="train"))
    assert seen == [
        (0, "node1", 0, "0,1"), (1, "node1", 1, "0,1"), (2, "node2", 0, "0,1"), (3, "node2", 1, "0,1"),
    ]  # fmt: skip


def test_scaling_over_one_two_and_four_nodes(quick_project: Project, tmp_path: Path) -> None:
    options = ("--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")
    job = quick_project.submit("benchmark_scaling.sh", *options, OUTPUT=str(tmp_path / "scaling.csv"))
    assert quick_project.cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", quick_project.log(job)
    seen = quick_project.facts(verb="scaling")
    assert {fact["csv"] for fact in seen} == {str(tmp_path / "scaling.csv")}
    assert [fact["world"] for fact in seen] == [2] * 2 + [4] * 4 + [8] * 8
    assert [len({fact["host"] for fact in seen if fact["world"] == world}) for world in (2, 4, 8)] == [1, 2, 4]


@pytest.mark.long
def test_a_sweep_as_an_array(quick_project: Project) -> None:
    """A stop of one task leaves the others alone: the last one has the array's own id, by which SLURM means all."""
    sweep = quick_project.config.with_name("sweep.yaml")
    grid = {"training.optimizer.lr": [1e-3, 2e-3], "experiment.seed": [1, 2]}
    sweep.write_text(yaml.safe_dump({"base": quick_project.config.name, "grid": grid}, sort_keys=False))
    settings = {"MAX_STEPS": "6", "PROGRAM_UNTIL": "may-end"}
    job = quick_project.submit("segformer_sweep.sh", "--array=0-3%4", *ONE, arguments=(str(sweep),), **settings)
    for index in range(4):
        quick_project.until(f"{job}_{index}", "step 5/")
    last = next(fact for fact in quick_project.facts() if fact["job"] == str(job))
    index = int(last["name"].split("-")[1])
    quick_project.cluster.login("scancel", "--signal=USR1", f"{job}_{index}")
    quick_project.until(f"{job}_{index}", f"requeueing job {job}_{index}: stopped with its state saved")
    (quick_project.root / "may-end").touch()
    for task in range(4):
        found = quick_project.cluster.wait(f"{job}_{task}", "COMPLETED")
        assert found["Restarts"] == ("1" if task == index else "0")
    assert sorted((fact["name"], fact["lr"]) for fact in quick_project.facts(restart=0)) == [
        ("sweep-00-lr_0.001-seed_1", 1e-3),
        ("sweep-01-lr_0.001-seed_2", 1e-3),
        ("sweep-02-lr_0.002-seed_1", 2e-3),
        ("sweep-03-lr_0.002-seed_2", 2e-3),
    ]
    assert len({fact["job"] for fact in quick_project.facts()}) == 4
    assert len(list(quick_project.root.glob(f"segformer-sweep-{job}_*.log"))) == 4


def test_a_requeue_keeps_the_checkpoint_that_the_run_was_to_start_from(quick_project: Project, tmp_path: Path) -> None:
    """As long as the run has none of its own."""
    job = quick_project.submit(
        "segformer_train.sh", *ONE, RESUME=str(tmp_path / "pretrained"), PROGRAM_CRASH="1", MAX_STEPS="3"
    )
    wait_for(lambda: quick_project.facts(restart=1), "the second attempt")
    quick_project.cluster.login("scancel", str(job))
    given = str(tmp_path / "pretrained")
    assert [quick_project.facts(restart=n)[0]["resume"] for n in (0, 1)] == [given, f"auto,{given}"]


def test_the_pipeline_in_order(quick_project: Project, tmp_path: Path) -> None:
    done = quick_project.cluster.login(
        "slurm/pipeline.sh", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1",
        cwd=quick_project.root,
        env={**quick_project.environment, "MAX_STEPS": "3", "CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    jobs = next(line for line in done.stdout.splitlines() if line.startswith("jobs: ")).split()[1:]
    assert len(jobs) == 4
    for job in jobs:
        assert quick_project.cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", quick_project.log(job)
    assert [(f["verb"], f["job"]) for f in quick_project.facts()] == [
        ("train", jobs[1]), ("evaluate", jobs[2]), ("submit", jobs[3]),
    ]  # fmt: skip
    assert quick_project.facts(verb="submit")[0]["model"] == "runs/r"
    assert list((tmp_path / "cache").glob("spark-train-*/cache.json")), "training has a cache"


def test_what_follows_a_failed_job_does_not_wait_for_ever(quick_project: Project, tmp_path: Path) -> None:
    done = quick_project.cluster.login(
        "slurm/pipeline.sh", *ONE,
        cwd=quick_project.root,
        env={**quick_project.environment, "DATA_ROOT": str(tmp_path / "none"), "TEST_IMAGES": str(tmp_path)},
    )  # fmt: skip
    jobs = done.stdout.split("jobs: ")[1].split()[:4]
    quick_project.cluster.wait(jobs[0], "FAILED")
    for job in jobs[1:]:
        quick_project.cluster.wait(job, "CANCELLED")
    assert "error: " in last_lines(quick_project, int(jobs[0]))


def test_a_pipeline_that_could_not_end_does_not_begin(quick_project: Project, tmp_path: Path) -> None:
    """A mistake in the last job's settings is found before the first one waits."""
    for settings, message in (
        ({"DATA_ROOT": str(tmp_path / "none")}, "there are no test images at"),
        ({"IMAGE_SZIE": "640"}, "did you mean IMAGE_SIZE?"),
    ):
        env = {**quick_project.environment, **settings}
        done = quick_project.cluster.login("slurm/pipeline.sh", cwd=quick_project.root, env=env, check=False)
        assert done.returncode == 2
        assert message in done.stderr
    assert quick_project.cluster.login("squeue", "-h").stdout == ""


def test_nodes_have_no_way_out(cluster: Cluster) -> None:
    """What the tests in here show about jobs without a network rests on this."""
    assert "default" not in cluster.on("node1", "ip", "route")
    assert cluster.on("node1", "ping", "-c1", "-W1", "1.1.1.1", check=False) == "" or "100% packet loss" in cluster.on(
        "node1", "ping", "-c1", "-W1", "1.1.1.1", check=False
    )
