from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segformer_spark.cli import build_parser, main
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs.arguments import with_every_set
from segformer_spark.verbs.launch import deadline
from tests.tiny import TINY_SETTINGS
from tests.verbs import run_verb

VERBS = [
    "init",
    "demo",
    "data init",
    "predict",
    "export",
    "bench export",
    "data make-demo",
    "data check",
    "data stats",
    "data preview",
    "data cache",
    "weights fetch",
    "params",
    "train",
    "tune lr",
    "tune batch-size",
    "doctor",
    "sweep",
    *(f"bench {what}" for what in ("train", "infer", "zero", "loss", "loader", "evaluate", "roofline", "scaling")),
    "job requeue",
    "job stage",
    "job unstage",
    "job paths",
    "evaluate",
    "compare",
    "ablate",
    "study-demo",
    "anomaly fit",
    "anomaly eval",
    "agreement run",
    "agreement make-demo",
    "submit",
    "runs",
]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segformer_spark", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def leave(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_text_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = leave(capsys, *verb.split(), "--help")
    assert status == 0
    assert "example:" in out
    example = out.rpartition("example:")[2].split()
    words = example[example.index(verb.split()[0]) :]
    build_parser().parse_args(words)


def test_dry_run_prints_the_plan_and_touches_nothing(
    spark_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = leave(
        capsys, "train", "--dry-run", "--world-size", "2", "--set", f"data.root={spark_root}",
        "--set", "training.batch_size=2", "--set", "training.accumulation_steps=3", "--no-measure",
    )  # fmt: skip
    assert status == 0
    assert "batch: 2 (micro-batch) x 3 (accumulation) x 2 (world) = 12 images" in out
    assert "steps per epoch: 1 (0 images left out of each epoch)" in out
    assert "steps in all: 100, of which 5 warm-up" in out
    assert "# run directory: runs/spark_b2_512" in out
    assert any(line.split() == ["batch_size:", "2", "#", "--set", "training.batch_size"] for line in out.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_training_would(spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", "--dry-run", "--set", f"data.root={spark_root}")
    status, _, err = leave(capsys, *arguments, "--world-size", "9")
    assert status == 2
    assert "one optimizer step takes" in err
    status, _, err = leave(capsys, *arguments, "--set", "training.batch_size=1", "--set", "model.variant=b7")
    assert status == 2
    assert err.startswith("error: --set model.variant: model.variant: input should be")


def test_environment_overrides_only_when_asked(
    spark_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "4")
    small = [f"data.root={spark_root}", "data.image_size=64", *TINY_SETTINGS]
    arguments = ("train", "--dry-run", "--world-size", "1", *(part for item in small for part in ("--set", item)))
    assert "batch: 8 " in leave(capsys, *arguments)[1]
    assert "batch: 4 " in leave(capsys, *arguments, "--from-env")[1]
    monkeypatch.setenv("IMAGE_SZIE", "640")
    status, _, err = leave(capsys, *arguments, "--from-env")
    assert status == 2
    assert "did you mean IMAGE_SIZE?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate",), "evaluate: which model?"),
        (("evaluate", "no/such/run"), "no such model or run directory"),
        (("submit", "--images", "x"), "submit: which model?"),
        (("submit", "--model", str(Path(__file__).parent)), "submit: give --images"),
        (("train", "--config", "no.yaml"), "no such configuration file"),
        (("train", "--resume", "auto", "--overwrite"), "give one of them"),
        (("train", "--accept-changes"), "goes with --resume"),
        (("data", "make-demo", "--root", str(Path(__file__).parent)), "not empty"),
    ],
)
def test_mistakes_end_with_status_2_and_one_message(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = leave(capsys, *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_evaluate_and_submit_from_the_command_line(trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    """As the batch scripts call them: everything from the environment, nothing from a terminal."""
    evaluation, submission = tmp_path / "evaluation", tmp_path / "submission"
    done = run_verb(
        "evaluate", "--from-env", "--device", "cpu", MODEL_PATH=str(trained_run), OUTPUT=str(evaluation), TTA="hflip"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((evaluation / "results.json").read_text())["record"]["tta"] == "hflip"
    assert "spark_score" in done.stdout
    images = str(spark_root / "stream-1-test")
    done = run_verb(
        "submit", "--from-env", MODEL_PATH=str(trained_run / "best"), TEST_IMAGES=images, OUTPUT=str(submission)
    )
    assert done.returncode == 0, done.stderr
    assert (submission / "submission.zip").is_file()
    assert "\r" not in done.stdout + done.stderr, "no bars in a batch log"


def test_evaluation_and_inference_heed_the_environment(
    trained_run: Path,
    spark_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MODEL_PATH", str(trained_run))
    monkeypatch.setenv("TEST_IMAGES", str(spark_root / "stream-1-test"))
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    monkeypatch.setenv("DEVICE", "cpu")
    for name, value, message in (
        ("TTA", "many", "tta many: choose among none, hflip"),
        ("PRECISION", "fp16", "precision fp16 needs a GPU"),
        ("TEST_IMGAES", "x", "did you mean TEST_IMAGES?"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            for verb in ("evaluate", "submit"):
                status, _, err = leave(capsys, verb, "--from-env")
                assert status == 2
                assert message in err
    assert not (tmp_path / "out" / "submission.zip").exists()


def test_results_of_two_models_do_not_mix(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = Path(shutil.copytree(trained_run, tmp_path / "other"))
    status, _, err = leave(capsys, "evaluate", str(other), "--model", str(trained_run / "best"))
    assert status == 2
    assert "give --output" in err
    for extra, name in (
        ((), "val"),
        (("--model", str(other / "final")), "val-final"),
        (("--tta", "flips"), "val-flips"),
    ):
        assert leave(capsys, "evaluate", str(other), "--worst", "1", *extra)[0] == 0
        assert (other / "evaluation" / name / "results.json").is_file()


def test_params_as_table_json_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--json", str(tmp_path / "p.json"), "--figure", str(tmp_path / "p.png"))
    status, out, _ = leave(capsys, "params", "--num-classes", "150", "--variants", "b0", "b5", *files)
    assert status == 0
    assert "3,752,694" in out
    assert [row["total_params"] for row in json.loads((tmp_path / "p.json").read_text())] == [3_752_694, 84_708_694]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_params_of_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--models", "b0", "unet", "deeplabv3plus:resnet101", "--num-classes", "13", "--image-size", "64")
    status, out, _ = leave(capsys, "params", *chosen)
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        ["segformer-b0", "3,717,485"],
        ["unet-resnet50", "32,522,845"],
        ["deeplabv3plus-resnet101", "45,672,797"],
    ]
    status, _, err = leave(capsys, "params", "--models", "unet:resnet5")
    assert status == 2
    assert "did you mean resnet50" in err


def test_runs_lists_and_shows(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ("--folder", str(trained_run.parent))
    status, out, _ = leave(capsys, "runs", *folder)
    assert status == 0
    assert out.splitlines()[1].split()[:3] == ["short", "completed", "9/9"]
    assert "attempt 1" in leave(capsys, "runs", "show", "short", *folder)[1]
    assert "attempt 1" in leave(capsys, "runs", "show", str(trained_run))[1], "a path will do"
    drawn = leave(capsys, "runs", "plot", "short", "--output", str(tmp_path / "curves.png"), *folder)
    assert "figure: " in drawn[1]
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert "a PNG file is written" in leave(capsys, "runs", "plot", "short", "--output", "x.pdf", *folder)[2]
    assert "which runs?" in leave(capsys, "runs", "plot", *folder)[2]
    status, _, err = leave(capsys, "runs", "show", "shrot", *folder)
    assert status == 2
    assert "there is no such run (with config.yaml); did you mean short?" in err
    (tmp_path / "none").mkdir()
    assert "no runs yet" in leave(capsys, "runs", "--folder", str(tmp_path / "none"))[1]


def test_dry_run_estimates_memory_and_time(spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = leave(
        capsys, "train", "--dry-run", "--nodes", "1", "--tasks-per-node", "3", "--set", f"data.root={spark_root}",
        "--set", "model.variant=b0", "--set", "data.image_size=64", "--set", "training.batch_size=2",
        "--set", "training.ema.decay=0.99", "--set", "hardware.device=cpu",
    )  # fmt: skip
    assert status == 0
    assert "2 (micro-batch) x 1 (accumulation) x 3 (world) = 6 images" in out
    memory = next(line for line in out.splitlines() if line.startswith("memory per device in MiB"))
    assert "parameters 14, gradients 14, optimizer 14, averaged weights 14, activations" in memory
    assert "activations measured on 1 image(s) at 64 px on this machine's CPU" in out
    assert "time for 200 steps: " in out
    assert "device-hours" in out
    assert "warning: the learning rate 6e-05 is not scaled with the world size: 3 devices" in out


@pytest.mark.parametrize(("scaling", "peak"), [("linear", "0.00012"), ("sqrt", "8.48528e-05")])
def test_learning_rate_scales_when_asked(
    spark_root: Path, capsys: pytest.CaptureFixture[str], scaling: str, peak: str
) -> None:
    out = leave(
        capsys, "train", "--dry-run", "--no-measure", "--world-size", "4", "--set", f"data.root={spark_root}",
        "--set", "training.batch_size=2", "--set", f"training.optimizer.lr_scaling={scaling}",
        "--set", "training.optimizer.lr_reference_batch=4",
    )[1]  # fmt: skip
    assert f"peak learning rate: {peak} (lr_scaling {scaling})" in out
    assert "warning" not in out


def test_tune_and_doctor_run_as_verbs(spark_root: Path, tmp_path: Path) -> None:
    settings = [
        part
        for item in (f"data.root={spark_root}", *TINY_SETTINGS, "data.image_size=64",
                     "data.num_workers=0", "training.batch_size=2", "training.epochs=3", "hardware.device=cpu",
                     "hardware.threads=1", "training.scheduler.warmup_epochs=1.0")
        for part in ("--set", item)
    ]  # fmt: skip
    done = run_verb("tune", "lr", "--steps", "6", "--output", str(tmp_path), *settings)
    assert done.returncode == 0, done.stderr
    assert "steepest fall at" in done.stdout
    assert (tmp_path / "lr_range.png").is_file()
    done = run_verb("tune", "batch-size", "--largest", "2", "--output", str(tmp_path), *settings)
    assert done.returncode == 0, done.stderr
    assert "training.batch_size=" in done.stdout
    assert len((tmp_path / "batch_size.csv").read_text().splitlines()) == 3
    done = run_verb("doctor", "--parity", *settings)
    assert done.returncode == 0, done.stderr
    assert "OK: relative to stage 0, 1e-05 passes" in done.stdout
    done = run_verb("doctor", *settings)
    assert done.returncode == 0, done.stdout
    assert " 0 failed" in done.stdout
    done = run_verb("doctor", *settings, "--set", "data.root=/no/such")
    assert done.returncode == 1
    assert "-> set data.root (with --from-env: DATA_ROOT) to the folder of the data set" in done.stdout


def test_dry_run_refuses_weights_for_another_class_count(spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", "--dry-run", "--no-measure", "--world-size", "1", "--set", f"data.root={spark_root}")
    status, _, err = leave(capsys, *arguments, "--set", "training.loss.class_weights=[1, 2, 3, 4, 5]")
    assert status == 2
    assert "training.loss.class_weights has 5 entries, there are 3 classes" in err


@pytest.mark.parametrize(("tasks", "prefix"), [("4", f"[rank 3 on {socket.gethostname()}] "), ("1", "")])
def test_every_line_of_a_traceback_names_rank_and_host(
    tasks: str, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A batch log holds all ranks' lines, mixed; one process alone needs no name."""

    def crash(resolved: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("segformer_spark.config.load.run_path", crash)
    monkeypatch.setattr("segformer_spark.cli.time.sleep", lambda seconds: None)
    for name, value in {
        "STEP_ID": "0",
        "NTASKS": tasks,
        "PROCID": "3",
        "LOCALID": "1",
        "JOB_NODELIST": "n",
        "JOB_ID": "7",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    status, _, err = leave(capsys, "job", "paths")
    assert status == ExitCode.OWN_FAILURE == 70
    lines = err.splitlines()
    assert lines[0] == f"{prefix}Traceback (most recent call last):"
    assert lines[-2:] == [f"{prefix}RuntimeError: two", f"{prefix}lines"]
    assert all(line.startswith(prefix) for line in lines)


def test_the_test_images_follow_the_data_root(
    trained_run: Path, spark_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run knows its data; DATA_ROOT counts for who asks for the environment."""
    from segformer_spark.verbs.inference import _test_images

    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert _test_images(trained_run, from_env=False) == spark_root / "stream-1-test"
    assert _test_images(trained_run, from_env=True) == tmp_path / "stream-1-test"
    assert _test_images(None, from_env=True) is None


@pytest.mark.parametrize("arguments", [("params", "--help"), ("runs", "list", "--folder", "{runs}")])
def test_a_reader_that_has_seen_enough_is_no_crash(arguments: tuple[str, ...], trained_run: Path) -> None:
    """`... | head -1`."""
    command = [sys.executable, "-m", "segformer_spark", *(a.format(runs=trained_run.parent) for a in arguments)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(write_end)
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def test_an_end_of_the_job_in_the_past_is_no_limit(caplog: pytest.LogCaptureFixture) -> None:
    """It would save at step 0 and leave, three times, until the requeue gives up."""
    later = time.time() + 900
    assert deadline({"SLURM_JOB_END_TIME": f"{later:.0f}"}) == pytest.approx(later, abs=1)
    assert deadline({}) is None
    assert deadline({"SLURM_JOB_END_TIME": "10:00:00"}) is None
    with caplog.at_level("WARNING", "segformer_spark"):
        logging.getLogger("segformer_spark").propagate = True
        assert deadline({"SLURM_JOB_END_TIME": "1700000000"}) is None
    assert "in the past: this run goes on without a limit of its own" in caplog.text


def test_the_bare_command_prints_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = leave(capsys)
    assert status == 0
    assert "predict" in printed
    assert "segformer-spark data init photos/ --name leaves" in printed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "--set", "a=1", "b.c=2", "--dry-run"], ["train", "--set", "a=1", "--set", "b.c=2", "--dry-run"]),
        (["evaluate", "--set", "a=1", "runs/x"], ["evaluate", "--set", "a=1", "runs/x"]),
        (["evaluate", "--set=a=1", "b=2", "runs/x"], ["evaluate", "--set=a=1", "--set", "b=2", "runs/x"]),
        (["evaluate", "--set", "a=1", "--tta", "b=2"], ["evaluate", "--set", "a=1", "--tta", "b=2"]),
        (["evaluate", "runs/x=1"], ["evaluate", "runs/x=1"]),
        (["train", "--set", "a=1", "b=[1, 2]", "c=3"], ["train", "--set", "a=1", "--set", "b=[1, 2]", "--set", "c=3"]),
    ],
)
def test_set_takes_every_assignment_that_follows(given: list[str], expected: list[str]) -> None:
    assert with_every_set(given) == expected


def test_runs_of_a_folder(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("runs", str(trained_run.parent)), ("runs", "list", str(trained_run.parent))):
        status, out, _ = leave(capsys, *arguments)
        assert (status, trained_run.name in out) == (0, True)
    for arguments, message in ((("compare", "a", "b"), "there is no such run"), (("nowhere",), "no such folder")):
        status, _, err = leave(capsys, "runs", *arguments)
        assert (status, message in err) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("params", "--variants", "b0", "b5"),
        ("train", "--config", str(PROJECT_ROOT / "configs" / "demo.yaml"), "--dry-run", "--no-measure"),
    ],
)
def test_answers_that_need_no_torch_do_not_load_it(arguments: tuple[str, ...], spark_root: Path) -> None:
    root = ("--set", f"data.root={spark_root}") if arguments[0] == "train" else ()
    code = (
        "import sys\nfrom segformer_spark.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as left:\n    print(left.code, {'torch', 'transformers', 'matplotlib'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, *arguments, *root]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stdout + done.stderr
