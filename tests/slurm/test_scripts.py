"""The batch scripts as text, and with stand-ins for srun, scontrol and Python; the other files have a real cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from segformer_spark.config.environment import LAUNCH_VARIABLES, config_variables
from segformer_spark.config.load import PROJECT_ROOT
from tests.slurm.packed import pack

SLURM = PROJECT_ROOT / "slurm"
SCRIPTS = sorted(path for path in SLURM.glob("*.sh") if "#SBATCH" in path.read_text())
ALL = [*sorted(SLURM.glob("*.sh")), *sorted((SLURM / "sites").glob("*.sh"))]


@pytest.mark.parametrize("script", ALL, ids=lambda p: p.name)
def test_shell_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, "-x", str(script)], check=True, cwd=PROJECT_ROOT)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a space in its path, and stand-ins that write down how they were called."""
    root = tmp_path / "my project"
    shutil.copytree(SLURM, root / "slurm")
    for name, body in {
        ".venv/bin/python": """printf "python %s\\n" "$*" >> calls
case "$*" in *'requeue --status 0 '*) exit 10 ;; *requeue*) exit "${VERDICT:-0}" ;; esac""",
        "bin/srun": """printf "srun %s | HF=$HF_HUB_OFFLINE\\n" "$*" >> calls
case "$*" in *' train '*) exit "${TRAIN_STATUS:-0}" ;; *--quick*) exit "${QUICK_STATUS:-0}" ;;
*'job stage '*) exit "${STAGE_STATUS:-0}" ;; *stage_env.sh\\ unpack*) exit "${UNPACK_STATUS:-0}" ;; esac""",
        "bin/scontrol": 'echo "JobId=7 JobState=RUNNING Restarts=0"',
        "bin/squeue": 'case "$*" in *%L*) echo "${LEFT-1:00:00}" ;; *) echo "10:00:00" ;; esac',
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return root


def submit(
    project: Path, script: str, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run as sbatch does: a copy of the script, elsewhere."""
    copy = project.parent / "spool" / "slurm_script"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(project / "slurm" / script, copy)
    base = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "HOME": str(project.parent), "SLURM_JOB_ID": "7"}
    (project / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(copy), *arguments],
        cwd="/",
        env={**base, "SLURM_SUBMIT_DIR": str(project), "SLURM_CPUS_PER_TASK": "8", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = project / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_train(project: Path) -> None:
    """Preflight on this node and on all, training on all ranks, then the question whether to run again."""
    done, calls = submit(
        project, "segformer_train.sh", SEGFORMER_VARIANT="b3", SLURM_JOB_NUM_NODES="2", SLURM_NTASKS_PER_NODE="3"
    )
    assert done.returncode == 0, done.stderr
    module = f"{project}/.venv/bin/python -m segformer_spark"
    config, context = "--config configs/spark_b3.yaml --from-env", "| HF=1"
    step = "srun --cpus-per-task=8 --kill-on-bad-exit"
    assert calls == [
        f"python -m segformer_spark doctor --fingerprint {config}",
        f"{step}=0 --nodes=2 --ntasks=2 --ntasks-per-node=1 {module} doctor --quick --expect  {config} {context}",
        f"{step}=1 --nodes=2 --ntasks=6 --ntasks-per-node=3 {module} job supervise --tasks-per-node 3 --spare-nodes 0 "
        f"-- train {config} {context}",
        f"python -m segformer_spark job requeue --status 0 {config}",
    ]


def test_train_without_restarts_in_place_and_with_spare_nodes(project: Path) -> None:
    three = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "2"}
    config = "--config configs/spark_b2.yaml --from-env"
    _, calls = submit(project, "segformer_train.sh", RESTART_IN_PLACE="0", **three)
    assert f"segformer_spark train {config}" in calls[-2]
    _, calls = submit(project, "segformer_train.sh", SPARE_NODES="1", **three)
    assert "--kill-on-bad-exit=0 --no-kill --wait=0 --nodes=3 --ntasks=6 " in calls[-2]
    assert f"job supervise --tasks-per-node 2 --spare-nodes 1 -- train {config}" in calls[-2]
    for wrong in ({"SPARE_NODES": "one"}, {"RESTART_IN_PLACE": "yes"}):
        done, calls = submit(project, "segformer_train.sh", **three, **wrong)
        assert done.returncode == 2
        assert "error: " in done.stderr
        assert not any(" train " in call for call in calls)


def test_every_job_has_a_key_of_its_own_for_its_agents(project: Path) -> None:
    srun = project / "bin" / "srun"
    srun.write_text(srun.read_text().replace("#!/bin/bash", '#!/bin/bash\necho "${JOB_AGENT_KEY-none}" >> keys'))
    for _ in range(2):
        submit(project, "segformer_train.sh")
    first, first_train, second, second_train = (project / "keys").read_text().split()
    assert first == second == "none", "what is no agent does not see it"
    assert len(first_train) == len(second_train) == 32
    assert first_train != second_train


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("10:05", 605), ("1:00:00", 3600), ("2-03:04:05", 183845), ("08:09", 489), ("UNLIMITED", None), ("", None)],
)
def test_the_end_of_the_job_is_reckoned_from_the_time_left(project: Path, left: str, seconds: int | None) -> None:
    """Before 23.02 SLURM does not set it, and the end as squeue prints it may be a time of day alone."""
    python = project / ".venv/bin/python"
    python.write_text(
        python.read_text().replace("#!/bin/bash", '#!/bin/bash\necho "${SLURM_JOB_END_TIME-none}" >> ends')
    )
    submit(project, "segformer_train.sh", LEFT=left)
    ends = set((project / "ends").read_text().split())
    if seconds is None:
        assert ends == {"none"}
    else:
        assert abs(int(ends.pop()) - time.time() - seconds) < 20


def test_train_with_gpus_configuration_and_staging(project: Path) -> None:
    """One task per granted GPU, whatever the number of tasks."""
    environment = {"SLURM_GPUS_ON_NODE": "2", "SLURM_NTASKS_PER_NODE": "4", "CONFIG": "my.yaml", "STAGE_DATA": "1"}
    _, calls = submit(project, "segformer_train.sh", **environment)
    kinds = [re.sub(r".*segformer_spark (\w+ ?-*[a-z-]*).*", r"\1", call) for call in calls]
    assert kinds == [
        "doctor --fingerprint",
        "doctor --quick",
        "job stage",
        "job supervise",
        "job requeue",
        "job unstage",
    ]
    assert "--ntasks=1 --ntasks-per-node=1" in calls[2]
    assert "--ntasks=2 --ntasks-per-node=2" in calls[3]
    assert all("--config my.yaml" in call for call in calls)


def test_a_staged_environment_is_that_of_every_step(project: Path, tmp_path: Path) -> None:
    """Unpacked once per node before anything else, and removed at the end. The stand-in of srun runs no step."""
    pack(project / ".venv")
    staged = tmp_path / "local" / "segformer_spark-env-7"
    shutil.copytree(project / ".venv", staged)
    settings = {"STAGE_ENV": "1", "LOCAL_SCRATCH": str(staged.parent), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    done, calls = submit(project, "segformer_train.sh", **settings)
    assert done.returncode == 0, done.stderr
    per_node = "srun --cpus-per-task=8 --kill-on-bad-exit=0 --nodes=2 --ntasks=2 --ntasks-per-node=1 slurm/stage_env.sh"
    assert calls[0].startswith(f"{per_node} unpack {project}/.venv.tar {staged} ")
    assert calls[-1].startswith(f"{per_node} remove {staged} ")
    steps = [call for call in calls[1:-1] if call.startswith("srun")]
    assert len(steps) == 2
    assert all(f" {staged}/bin/python -m segformer_spark" in call for call in steps)


def test_where_the_environment_cannot_be_staged_the_shared_one_is_used(project: Path) -> None:
    pack(project / ".venv")
    done, calls = submit(project, "segformer_train.sh", STAGE_ENV="1", UNPACK_STATUS="1")
    assert done.returncode == 0
    assert "not on every node, see above: all use the environment on shared storage" in done.stdout
    assert f"{project}/.venv/bin/python -m segformer_spark job supervise" in " ".join(calls)
    assert not any("stage_env.sh remove" in call for call in calls)
    shutil.rmtree(project / ".venv")
    done, calls = submit(project, "segformer_train.sh", STAGE_ENV="1", UNPACK_STATUS="1")
    assert done.returncode == 2
    assert "not on every node, see above, and there is no environment at" in done.stderr


def test_an_archive_that_is_missing_or_old_is_a_mistake(project: Path) -> None:
    done, _ = submit(project, "segformer_train.sh", STAGE_ENV="1")
    assert f"there is no {project}/.venv.tar; make it once: make env-archive" in done.stderr
    path = pack(project / ".venv")
    os.utime(path, (1, 1))
    done, _ = submit(project, "segformer_train.sh", STAGE_ENV="1")
    assert "is older than what is installed" in done.stderr
    done, calls = submit(project, "segformer_train.sh", STAGE_ENV="yes")
    assert "STAGE_ENV=yes: set 1" in done.stderr
    assert done.returncode == 2
    assert calls == []


def stage_env(project: Path, *arguments: object, path: str = "") -> subprocess.CompletedProcess[str]:
    command = ["bash", str(project / "slurm" / "stage_env.sh"), *map(str, arguments)]
    environment = {**os.environ, "SLURMD_NODENAME": "node7", "PATH": f"{path or project / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_environment_is_unpacked_whole_or_not_at_all(project: Path, tmp_path: Path) -> None:
    source, folder = pack(project / ".venv"), tmp_path / "local" / "segformer_spark-env-7"
    done = stage_env(project, "unpack", source, folder)
    assert (done.returncode, "MiB unpacked in" in done.stdout) == (0, True), done.stderr
    assert (folder / "bin" / "python").read_bytes() == (project / ".venv" / "bin" / "python").read_bytes()
    assert (folder.stat().st_mode & 0o777) == 0o700
    done = stage_env(project, "unpack", source, folder)
    assert done.stdout == f"[node7] {folder} is complete already\n"
    (folder / ".complete").unlink()
    (folder / "rest").touch()
    assert stage_env(project, "unpack", source, folder).returncode == 0
    assert not (folder / "rest").exists(), "what was cut off is unpacked anew"
    source.write_bytes(source.read_bytes()[:700])
    (folder / ".complete").unlink()
    done = stage_env(project, "unpack", source, folder)
    assert (done.returncode, "could not be unpacked" in done.stdout) == (1, True)
    assert not folder.exists()
    assert stage_env(project, "remove", folder).returncode == 0


def test_an_environment_that_does_not_fit_is_not_begun(project: Path, tmp_path: Path) -> None:
    df = tmp_path / "small" / "df"
    df.parent.mkdir()
    df.write_text("#!/bin/sh\necho Avail\necho 1024\n")
    df.chmod(0o755)
    folder = tmp_path / "local" / "segformer_spark-env-7"
    done = stage_env(project, "unpack", pack(project / ".venv"), folder, path=str(df.parent))
    assert done.returncode == 1
    assert "does not fit on" in done.stdout
    assert not folder.exists()


@pytest.mark.parametrize(
    ("answer", "status", "removed"),
    [
        ("RUNNING", 0, False),
        ("", 0, True),
        ("slurm_load_jobs error: Invalid job id specified", 1, True),
        ("slurm_load_jobs error: Unable to contact slurm controller", 1, False),
    ],
)
def test_environments_of_jobs_that_are_over_are_removed(
    project: Path, tmp_path: Path, answer: str, status: int, removed: bool
) -> None:
    (project / "bin/squeue").write_text(f'#!/bin/sh\necho "{answer}" >&$((1 + {status}))\nexit {status}\n')
    local = tmp_path / "local"
    old, foreign = local / "segformer_spark-env-5", local / "segformer_spark-env-mine"
    for path in (old, foreign):
        path.mkdir(parents=True)
    stage_env(project, "unpack", pack(project / ".venv"), local / "segformer_spark-env-7")
    assert old.exists() is not removed
    assert foreign.exists()


def test_the_status_of_training_decides(project: Path) -> None:
    done, calls = submit(project, "segformer_train.sh", TRAIN_STATUS="85")
    assert done.returncode == 85
    assert "job requeue --status 85" in calls[-1]
    for verdict, unstaged in (("0", 0), ("11", 1), ("12", 1)):
        _, calls = submit(project, "segformer_train.sh", TRAIN_STATUS="85", STAGE_DATA="1", VERDICT=verdict)
        assert sum("job unstage" in call for call in calls) == unstaged
    assert "srun" not in calls[-1], "SLURM starts no step for a job that it ends"
    done, calls = submit(project, "segformer_train.sh", QUICK_STATUS="1")
    assert done.returncode == 1
    assert "not started: a node is not fit" in done.stdout
    assert "--quick" in calls[-1], "no training after a preflight that failed"
    for environment in ({"QUICK_STATUS": "138"}, {"STAGE_DATA": "1", "STAGE_STATUS": "143"}):
        _, calls = submit(project, "segformer_train.sh", **environment)
        assert not any(" train " in call for call in calls)
        assert "job requeue --status 1" in calls[-1], "preempted before training began"


def test_evaluation_and_inference(project: Path) -> None:
    scripts = {"segformer_eval.sh": "evaluate", "segformer_inference.sh": "submit", "segformer_predict.sh": "predict"}
    for script, verb in scripts.items():
        done, calls = submit(project, script, MODEL_PATH="runs/x/best", DATA_ROOT="/d", PREDICT_IMAGES="photos")
        assert done.returncode == 0, done.stderr
        assert f"segformer_spark {verb} --from-env" in calls[0]
        assert "done: " in done.stdout.splitlines()[-1]
        done, _ = submit(project, script)
        assert done.returncode != 0
        assert "set MODEL_PATH" in done.stderr


def test_a_sweep_needs_a_file_and_an_array(project: Path) -> None:
    done, calls = submit(project, "segformer_sweep.sh", "my sweep.yaml", SLURM_ARRAY_TASK_ID="3")
    assert done.returncode == 0, done.stderr
    assert "train --sweep my sweep.yaml --sweep-index 3 --from-env" in calls[-2]
    assert "which sweep?" in submit(project, "segformer_sweep.sh", SLURM_ARRAY_TASK_ID="3")[0].stderr
    assert "submit it as an array" in submit(project, "segformer_sweep.sh", "x.yaml")[0].stderr


def test_a_study_is_reported(project: Path) -> None:
    done, calls = submit(project, "segformer_study.sh", "configs/study/my study.yaml", "--set", "a.b=c")
    assert calls[-1].startswith(
        "python -m segformer_spark compare report configs/study/my study.yaml --from-env --set a.b=c"
    )
    assert "done: configs/study/my study.yaml. Next: open studies/my study/report.html" in done.stdout
    _, calls = submit(project, "segformer_study.sh", "x.yaml", ABLATION="1")
    assert calls[-1].startswith("python -m segformer_spark ablate report x.yaml")
    assert "which study?" in submit(project, "segformer_study.sh")[0].stderr


def test_anomaly_scores_of_a_study(project: Path) -> None:
    done, calls = submit(project, "segformer_anomaly.sh", "--study", "my study.yaml", DATA_ROOT="/my data")
    assert done.returncode == 0, done.stderr
    own = "--study my study.yaml"
    assert [call for call in calls if "anomaly" in call] == [
        f"python -m segformer_spark anomaly fit {own} --from-env",
        f"python -m segformer_spark anomaly eval {own} --methods all --from-env",
    ]
    assert "which runs?" in submit(project, "segformer_anomaly.sh")[0].stderr


def test_wrong_folder_environment_and_site(project: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for environment, message in (
        ({"SLURM_SUBMIT_DIR": str(tmp_path / "other")}, "submit from the project's root folder"),
        ({"VENV": "/no/such"}, "make install"),
        ({"SITE": "atlantis"}, "there are: generic iris meluxina"),
        ({"SITE": "../common"}, "there are: generic iris meluxina"),
    ):
        done, calls = submit(project, "segformer_train.sh", **environment)
        assert done.returncode == 2
        assert message in done.stderr
        assert calls == []


@pytest.mark.parametrize("site", ["meluxina", "iris"])
def test_sites_load_their_modules(project: Path, site: str) -> None:
    """Where there is a module command; elsewhere they say that there is none, and continue."""
    done, calls = submit(project, "segformer_train.sh", SITE=site)
    assert done.returncode == 0, done.stderr
    assert len(calls) == 4
    assert f"SITE={site}: there is no module command" in done.stdout
    module = {"BASH_FUNC_module%%": '() { echo "module $*"; [ -z "$MISSING" ]; }'}
    done, calls = submit(project, "segformer_train.sh", SITE=site, **module)
    assert "module load " in done.stdout
    assert "Python" in done.stdout
    assert len(calls) == 4
    done, calls = submit(project, "segformer_train.sh", SITE=site, MISSING="1", **module)
    assert done.returncode == 2
    assert f"name others in slurm/sites/{site}.sh" in done.stderr
    assert calls == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_no_site_is_written_into_the_scripts(script: Path) -> None:
    text = script.read_text()
    directives = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert not {"account", "partition", "qos"} & set(directives)
    assert {"job-name", "open-mode", "output", "time", "nodes", "cpus-per-task"} <= set(directives)
    assert "source slurm/common.sh" in text


def test_variables_that_the_scripts_use_are_known() -> None:
    text = "".join(script.read_text() for script in ALL)
    used = {
        name for name in re.findall(r"\$\{([A-Z_]+)[:}]", text) if not name.startswith(("SLURM_", "SLURMD_", "SBATCH_"))
    }
    caches = set(re.findall(r'export ([A-Z_]+)="\$\{\1:-', text)) | {"SCRATCH", "USER", "BASH_SOURCE", "TMPDIR"}
    assert used - caches <= {*config_variables(), *LAUNCH_VARIABLES}
    assert {"VENV", "SCRATCH_DIR", "MODEL_PATH", "SITE", "STAGE_DATA", "STAGE_ENV"} <= used


def test_the_container_is_made_of_what_is_there(tmp_path: Path) -> None:
    """As far as that shows without Apptainer: sections, files, and shell commands that can be read."""
    text = (SLURM / "segformer_spark.def").read_text()
    header, *sections = re.split(r"^%(\w+)$", text, flags=re.MULTILINE)
    assert "Bootstrap: docker\nFrom: python:3.12" in header
    by_name = dict(zip(sections[::2], sections[1::2], strict=True))
    assert set(by_name) == {"files", "post", "environment", "test", "labels"}
    copied = [line.split()[0] for line in by_name["files"].splitlines() if line.strip()]
    assert all((PROJECT_ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "setup.py", "constraints.txt", "segformer_spark", "ds_configs", "configs"} <= set(copied)
    for name in ("post", "environment", "test"):
        script = tmp_path / f"{name}.sh"
        script.write_text(by_name[name])
        subprocess.run(["sh", "-n", str(script)], check=True)
    assert "-c constraints.txt -e ." in by_name["post"]
