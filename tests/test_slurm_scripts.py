"""The batch scripts with stand-ins for srun and scontrol; the cluster itself is simulated elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from segformer_spark.config.environment import LAUNCH_VARIABLES, config_variables
from segformer_spark.config.load import PROJECT_ROOT

SCRIPTS = sorted((PROJECT_ROOT / "slurm").glob("segformer_*.sh"))


@pytest.mark.parametrize("script", [*SCRIPTS, PROJECT_ROOT / "slurm" / "common.sh"], ids=lambda p: p.name)
def test_shell_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is not None:
        subprocess.run([shellcheck, "-x", str(script)], check=True, cwd=PROJECT_ROOT)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a space in its path, and stand-ins that write down how they were called."""
    root = tmp_path / "my project"
    shutil.copytree(PROJECT_ROOT / "slurm", root / "slurm")
    for name, body in {
        ".venv/bin/python": "exit 0",
        "bin/srun": """printf "%s\\n" "srun" "$@" "RESUME=$RESUME HF=$HF_HUB_OFFLINE" >> calls
exit "${SRUN_STATUS:-0}\"""",
        "bin/scontrol": 'printf "%s\\n" "scontrol $*" >> calls',
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return root


def submit(project: Path, script: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run as sbatch does: a copy of the script, elsewhere."""
    copy = project.parent / "spool" / "slurm_script"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(project / "slurm" / script, copy)
    base = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "HOME": str(project.parent), "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", str(copy)],
        cwd="/",
        env={**base, "SLURM_SUBMIT_DIR": str(project), "SLURM_CPUS_PER_TASK": "8", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = project / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_train(project: Path) -> None:
    done, calls = submit(project, "segformer_train.sh", SEGFORMER_VARIANT="b3", IMAGE_SIZE="640")
    assert done.returncode == 0, done.stderr
    python = str(project / ".venv" / "bin" / "python")
    assert calls == [
        "srun", "--kill-on-bad-exit=1", "--cpus-per-task=8", python, "-m", "segformer_spark", "train",
        "--config", "configs/spark_b3.yaml", "--from-env", "RESUME= HF=1",
    ]  # fmt: skip


def test_train_defaults_and_own_configuration(project: Path) -> None:
    assert "configs/spark_b2.yaml" in submit(project, "segformer_train.sh")[1]
    assert "my.yaml" in submit(project, "segformer_train.sh", CONFIG="my.yaml")[1]


def test_a_requeued_job_resumes(project: Path) -> None:
    _, calls = submit(project, "segformer_train.sh", SLURM_RESTART_COUNT="1")
    assert calls[-1] == "RESUME=auto HF=1"


def test_a_stopped_run_requeues_itself_and_a_failed_one_does_not(project: Path) -> None:
    done, calls = submit(project, "segformer_train.sh", SRUN_STATUS="85")
    assert calls[-1] == "scontrol requeue 7"
    assert done.returncode == 85
    (project / "calls").unlink()
    done, calls = submit(project, "segformer_train.sh", SRUN_STATUS="2")
    assert done.returncode == 2
    assert not any("scontrol" in call for call in calls)


def test_evaluation_and_inference(project: Path) -> None:
    for script, verb in (("segformer_eval.sh", "evaluate"), ("segformer_inference.sh", "submit")):
        done, calls = submit(project, script, MODEL_PATH="runs/x/best")
        assert done.returncode == 0, done.stderr
        assert calls[-3:-1] == [verb, "--from-env"]
        done, _ = submit(project, script)
        assert done.returncode != 0
        assert "set MODEL_PATH" in done.stderr


def test_wrong_folder_and_missing_environment(project: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done, _ = submit(project, "segformer_train.sh", SLURM_SUBMIT_DIR=str(tmp_path / "other"))
    assert done.returncode == 2
    assert "submit from the project's root folder" in done.stderr
    done, _ = submit(project, "segformer_train.sh", VENV="/no/such")
    assert done.returncode == 2
    assert "make install" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_no_site_is_written_into_the_scripts(script: Path) -> None:
    text = script.read_text()
    directives = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert not {"account", "partition", "qos"} & set(directives)
    assert {"open-mode", "output", "time", "ntasks-per-node", "gpus-per-node"} <= set(directives)


def test_variables_that_the_scripts_use_are_known() -> None:
    text = "".join(script.read_text() for script in [*SCRIPTS, PROJECT_ROOT / "slurm" / "common.sh"])
    used = {name for name in re.findall(r"\$\{([A-Z_]+)[:}]", text) if not name.startswith("SLURM_")}
    caches = set(re.findall(r'export ([A-Z_]+)="\$\{\1:-\$scratch', text)) | {"OMP_NUM_THREADS", "SCRATCH"}
    assert used - caches <= {*config_variables(), *LAUNCH_VARIABLES}
    assert {"VENV", "SCRATCH_DIR", "MODEL_PATH", "DATA_ROOT"} <= used


def test_the_test_images_follow_the_data_root(project: Path) -> None:
    (project / "bin" / "srun").write_text('#!/bin/bash\necho "images $TEST_IMAGES" > calls\n')
    assert submit(project, "segformer_inference.sh", MODEL_PATH="m", DATA_ROOT="/d")[1] == ["images /d/stream-1-test"]
    own = submit(project, "segformer_inference.sh", MODEL_PATH="m", DATA_ROOT="/d", TEST_IMAGES="/t")[1]
    assert own == ["images /t"]
