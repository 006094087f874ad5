from __future__ import annotations

from pathlib import Path

import pytest

from segformer_spark.config.load import PROJECT_ROOT, load_config, run_name, run_path
from segformer_spark.errors import ConfigError
from segformer_spark.run.directory import dump_config


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_precedence_and_provenance(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "training:\n  epochs: 7\n  batch_size: 2\n  optimizer: {lr: 1e-4}\n")
    path = write(tmp_path, "top.yaml", "base: base.yaml\ntraining:\n  batch_size: 4\n")
    resolved = load_config(path, overrides=["training.epochs=9"], environment={"EPOCHS": "8", "LEARNING_RATE": "2e-4"})
    training = resolved.config.training
    assert (training.epochs, training.batch_size, training.optimizer.lr) == (9, 4, 2e-4)
    assert training.optimizer.weight_decay == 0.01
    assert resolved.provenance["training.epochs"] == "--set training.epochs"
    assert resolved.provenance["training.batch_size"].endswith("top.yaml:3")
    assert resolved.provenance["training.optimizer.lr"] == "environment LEARNING_RATE"
    assert resolved.provenance["training.optimizer.weight_decay"] == "default"


def test_the_environment_is_not_read_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHS", "3")
    assert load_config().config.training.epochs == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  batchsize: 8\n", "x.yaml:2: training.batchsize: there is no such key. Did you mean batch_size"),
        ("training:\n  lr: 1e-4\n", "Did you mean training.optimizer.lr"),
        ("training:\n  epochs: '3'\n", "x.yaml:2: training.epochs: input should be a valid integer (given: '3')"),
        ("training:\n  epochs: 0\n", "greater than or equal to 1"),
        ("training:\n  epochs: true\n", "x.yaml:2"),
        ("model:\n  variant: b9\n", "x.yaml:2: model.variant: input should be 'b0', 'b1'"),
        ("augmentation:\n  scale: [1.2, 0.8]\n", "scale must be [low, high]"),
        ("training:\n  loss: {ce_weight: 0.0, dice_weight: 0.0}\n", "nothing to minimise"),
        ("training:\n  validation: {every_epochs: null}\n", "every_epochs and every_steps are both null"),
        ("model: {num_classes: 3}\ntraining: {loss: {class_weights: [1.0, 2.0]}}\n", "class_weights has 2 entries"),
        ("training:\n  optimizer: {lr: .nan}\n", "training.optimizer.lr"),
        ("- a\n", "this file holds a list"),
    ],
)
def test_mistakes_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, "x.yaml", text))
    assert message in str(error.value)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "x.yaml", "training:\n  epochs: 0\n  batch_size: 0\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert len(str(error.value).splitlines()) == 2


def test_base_that_leads_back(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    with pytest.raises(ConfigError, match="leads back"):
        load_config(write(tmp_path, "b.yaml", "base: a.yaml\n"))


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "spark_b2.yaml", "")
    with pytest.raises(ConfigError, match=r"Did you mean spark_b2\.yaml"):
        load_config(tmp_path / "spark_b22.yaml")


@pytest.mark.parametrize("item", ["training.epochs", "training.epoch=3", "nonsense=1"])
def test_bad_overrides(item: str) -> None:
    with pytest.raises(ConfigError):
        load_config(overrides=[item])


def test_text_fields_take_text() -> None:
    assert load_config(overrides=["experiment.name=2024"]).config.experiment.name == "2024"


def test_run_name_and_path() -> None:
    config = load_config(environment={"SEGFORMER_VARIANT": "b3", "IMAGE_SIZE": "640"}).config
    assert run_name(config) == "spark_b3_640"
    assert run_path(config) == Path("runs/spark_b3_640")


@pytest.mark.parametrize("name", ["a b", "a/b", "a\nb", "..", "x" * 65, "", "{nothing}", "$(x)"])
def test_unsafe_run_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.name"):
        load_config(overrides=[f"experiment.name={name}"])


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_load_and_write_back_unchanged(path: Path, tmp_path: Path) -> None:
    resolved = load_config(path)
    again = load_config(write(tmp_path, "again.yaml", dump_config(resolved)))
    assert again.config == resolved.config


def test_spark_configurations_keep_the_seed_defaults() -> None:
    for number in range(6):
        config = load_config(PROJECT_ROOT / "configs" / f"spark_b{number}.yaml").config
        training = config.training
        assert config.model.variant == f"b{number}"
        assert (config.model.pretrained, config.data.image_size, training.batch_size) == ("ade20k", 512, 8)
        assert (training.optimizer.lr, training.optimizer.weight_decay) == (6e-5, 0.01)
        assert (training.epochs, training.scheduler.warmup_epochs, training.gradient_clip) == (100, 5, 1.0)
        assert (training.loss.type, training.loss.ce_weight, training.loss.dice_weight) == ("ce_dice", 0.5, 0.5)
        assert (training.early_stopping.patience, config.experiment.seed) == (30, 42)
        assert config.deepspeed.zero_stage == (2 if number >= 4 else 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.precision=fp16", "deepspeed.zero_stage=0"], "fp16 needs deepspeed.zero_stage 1 or 2"),
        (["model.freeze_backbone=true", "training.optimizer.layer_decay=0.9"], "freeze_backbone is on"),
        (["training.loss.type=lovasz", "training.loss.label_smoothing=0.1"], "label_smoothing goes with ce"),
        (["training.loss.class_weights=[]"], "class_weights is empty"),
        (["inference.crops=box", "inference.resize=native"], "inference.crops goes with resize: image_size"),
        (["inference.crops=two_pass", "inference.window=512"], "inference.crops goes with resize: image_size"),
    ],
)
def test_settings_that_contradict_each_other(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)


PATH_SETTINGS = (
    "data.root",
    "data.manifest",
    "data.cache",
    "model.pretrained",
    "model.weights_dir",
    "output.save_path",
    "deepspeed.config",
)


@pytest.mark.parametrize("dotted", PATH_SETTINGS)
def test_home_and_variables_are_expanded_in_paths(dotted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    section, key = dotted.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}:\n  {key}: ~/own\n")
    texts = {"~/own": "/home/me/own", "${SCRATCH}/x": "/scratch/x", "$SCRATCH/x": "/scratch/x", "a/{root}": "a/{root}"}
    for text, expected in texts.items():
        config = load_config(overrides=[f"{dotted}={text}"]).config
        assert getattr(getattr(config, section), key) == expected
    assert getattr(getattr(load_config(tmp_path / "c.yaml").config, section), key) == "/home/me/own"
    with pytest.raises(ConfigError, match=rf"{dotted}.*the environment variable NOWHERE, which is not set"):
        load_config(overrides=[f"{dotted}=${{NOWHERE}}/x"])


def test_other_text_is_taken_as_it_is() -> None:
    assert load_config(overrides=["experiment.notes=~ 5 $ each"]).config.experiment.notes == "~ 5 $ each"


def test_no_more_classes_than_a_mask_of_bytes_can_tell_from_ignored(tmp_path: Path) -> None:
    for number in (255, 256, 300):
        rows = [f"    - {{name: c{n}, color: [{n % 256}, {n // 256}, 1]}}" for n in range(number)]
        text = "\n".join(["data:", "  dataset: folder", "  folder:", "   masks: color", "   classes:", *rows])
        (tmp_path / "c.yaml").write_text(text)
        if number == 255:
            assert len(load_config(tmp_path / "c.yaml").config.data.folder.classes or []) == 255
        else:
            with pytest.raises(ConfigError, match=r"data\.folder\.classes.*255"):
                load_config(tmp_path / "c.yaml")
