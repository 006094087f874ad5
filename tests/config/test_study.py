from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.agreement.study_file import read_agreement_study
from segformer_spark.config.load import PROJECT_ROOT, load_config, run_path
from segformer_spark.config.schema import RUN_NAME_PATTERN
from segformer_spark.config.study import pick_run, read_runs, read_study, resolve_run
from segformer_spark.config.sweep import read_sweep
from segformer_spark.errors import ConfigError
from segformer_spark.models.registry import find_architecture
from segformer_spark.study.comparison import reference_rows

WHOLE = """
base: base.yaml
models:
  SegFormer-B0: {model.variant: b0}
  U-Net: {model.name: unet, training.epochs: 7}
data:
  camvid: {data.dataset: camvid, data.root: /data/camvid, training.epochs: 5}
  voc: {data.dataset: voc}
recipes:
  none:
  flip: {augmentation.horizontal_flip: 0.25, augmentation.crop.scale: [0.5, 1.5]}
seeds: [1, 2]
splits: [val, train]
examples: 3
reference:
  U-Net: {val_miou: 0.5, note: theirs}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text("model: {pretrained: none}\ntraining: {epochs: 3}\n")
    path = folder / "my study.yaml"
    path.write_text(text)
    return path


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, WHOLE))
    assert len(study.runs) == 2 * 2 * 2 * 2
    assert len({run.name for run in study.runs}) == 16
    assert all(re.fullmatch(RUN_NAME_PATTERN, run.name) for run in study.runs)
    found = {(run.data, run.model, run.recipe, run.seed) for run in study.runs}
    assert ("voc", "U-Net", "flip", 2) in found
    assert (study.splits, study.examples, list(study.recipes)) == (("val", "train"), 3, ["none", "flip"])
    assert study.reference == {"U-Net": {"val_miou": 0.5, "note": "theirs"}}


def test_later_settings_win(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, WHOLE))
    run = next(r for r in study.runs if (r.data, r.model, r.recipe, r.seed) == ("camvid", "U-Net", "flip", 2))
    config = resolve_run(run).config
    assert (config.data.root, config.model.name, config.experiment.seed) == ("/data/camvid", "unet", 2)
    assert (config.training.epochs, config.augmentation.horizontal_flip) == (7, 0.25), "the model's, not the data set's"
    assert config.augmentation.crop.scale == (0.5, 1.5)
    assert run_path(config) == Path("studies/my study/runs") / run.name
    assert run.name == "my_study-camvid-U_Net-flip-s2"
    assert run.label == "U-Net, flip"


def test_save_path_moves_all_runs(tmp_path: Path) -> None:
    run = read_study(write(tmp_path, WHOLE)).runs[0]
    moved = resolve_run(run, environment={"SAVE_PATH": "/scratch/{name}", "SEED": "77"}).config
    assert run_path(moved) == Path("/scratch") / run.name
    assert moved.experiment.seed == 1, "the study's own settings win"
    assert run_path(resolve_run(run, ["output.save_path=here/{name}"]).config) == Path("here") / run.name


def test_axes_that_are_left_out_have_no_place_in_names(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, "base: base.yaml\nmodels: {B0: {model.variant: b0}}\n"))
    assert [(run.name, run.label, run.seed) for run in study.runs] == [("my_study-B0-s42", "B0", 42)]


def test_array_indices_reach_studies_and_sweeps(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    assert pick_run(path, 3) == read_runs(path)[3] == read_study(path).runs[3]
    with pytest.raises(ConfigError, match=r"there is no run 16; there are 16: sbatch --array=0-15"):
        pick_run(path, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {a: {}}\n", "my study.yaml: base: this key is missing"),
        ("base: base.yaml\nmodels: {a: {}}\nmodel: {}\n", r"yaml:3: model: there is no such key. Did you mean models"),
        ("- a\n", "a study is a mapping with the keys base, models"),
        ("base: none.yaml\nmodels: {a: {}}\n", "no such configuration file"),
        ("base: base.yaml\nmodels: [a]\n", r"yaml:2: models: input should be a valid dictionary \(given: \['a'\]\)"),
        (
            "base: base.yaml\nmodels: {a: {model.nam: unet}}\n",
            r"yaml:2: models.a.model.nam: there is no such key of .* mean model.name",
        ),
        ("base: base.yaml\nmodels: {a: {}}\nseeds: 3\n", r"yaml:3: seeds: input should be a valid list"),
        (
            "base: base.yaml\nmodels: {a: {}}\nseeds: [1, 1]\n",
            r"my_study-a-s1-\w{6} are there twice: give other seeds",
        ),
        ("base: base.yaml\nmodels: {a: {training.image_size: 64}}\n", "Did you mean data.image_size"),
        ("base: base.yaml\nmodels: {a: {}}\nseeds: [-1]\n", "seeds are whole numbers from 0 on"),
        ("base: base.yaml\nmodels: {a: {}}\nsplits: val\n", "yaml:3: splits: input should be a valid list"),
        ("base: base.yaml\nmodels: {a: {}}\nexamples: many\n", "yaml:3: examples: input should be a valid integer"),
        ("base: base.yaml\nmodels: {a: {}}\nreference: {b: {val_miou: 0.1}}\n", "'b' is no model or recipe"),
        ("base: base.yaml\nmodels: {a: {}}\nbaseline: b\n", "'b' is no model of this study"),
        ("base: base.yaml\nmodels: {a: {}}\nreference: {a: {miou: 0.1}}\n", "reference.a.miou: there is no such key"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(write(tmp_path, text))


STUDIES = [
    path for path in sorted((PROJECT_ROOT / "configs" / "study").glob("*.yaml")) if "models:" in path.read_text()
]


@pytest.mark.parametrize("path", [p for p in STUDIES if p.stem != "a_agreement"], ids=lambda p: p.stem)
def test_ready_studies_are_in_order(path: Path) -> None:
    for run in read_study(path).runs:
        find_architecture(resolve_run(run).config.model)


@pytest.mark.parametrize(
    ("study", "metric", "expected"),
    [
        (
            "b_street_hazards",
            "val_miou",
            {
                "DeepLabV3 R50 multi-scale": 0.5026,
                "DeepLabV3 R50": 0.3757,
                "DeepLabV3 R101": 0.3707,
                "SegFormer-B5": 0.3557,
                "Hiera-Base": 0.3283,
            },
        ),
        ("b_ablation", "val_miou", {"all": 0.5026}),
        ("c_experiment_1", "val_miou", {"U-Net R50": 0.35, "ViT-B/16": 0.35}),
        ("c_experiment_1", "params_m", {"U-Net R50": 32, "ViT-B/16": 92}),
        ("c_experiment_2", "relative_time", {"DeepLabV3+ R50": 2, "SegFormer-B0": 1}),
        (
            "d_pets",
            "val_miou",
            {"FCN R50": 0.4404, "FCN R50 pretrained": 0.4615, "SegFormer-B0": 0.3001, "SegFormer-B0 lr 6e-3": 0.3218},
        ),
        (
            "d_pets",
            "train_miou",
            {"FCN R50": 0.5012, "FCN R50 pretrained": 0.5324, "SegFormer-B0": 0.30, "SegFormer-B0 lr 6e-3": 0.3377},
        ),
    ],
)
def test_studies_show_the_published_results(study: str, metric: str, expected: dict[str, float]) -> None:
    """The table of runs in the earlier study B."""
    reference = read_study(PROJECT_ROOT / "configs" / "study" / f"{study}.yaml").reference
    assert {name: row[metric] for name, row in reference.items()} == expected


def test_study_b_is_as_its_document_has_it() -> None:
    """Epochs, batches, hours, parameters and mIoU of models 1 to 5, and the gain of multi-scale crops."""
    study = read_study(PROJECT_ROOT / "configs" / "study" / "b_documented.yaml")
    configs = [resolve_run(run).config for run in study.runs]
    assert [config.training.epochs for config in configs] == [40, 30, 12, 12, 20]
    assert [config.training.batch_size for config in configs] == [4, 4, 4, 2, 1]
    assert [config.training.global_batch_size for config in configs] == [4, 4, 4, 2, 1]
    assert [config.data.input_size for config in configs] == [(512, 512)] * 4 + [(720, 1280)]
    assert [config.augmentation.crop.mode for config in configs] == ["variable", *["none"] * 4]
    assert {config.training.optimizer.lr for config in configs} == {1e-4}
    assert all(config.training.scheduler.warmup_epochs < 12 for config in configs)
    rows = list(study.reference.values())
    assert [row["hours"] for row in rows] == [4, 2.5, 1.5, 2, 3.5]
    assert [row["params_m"] for row in rows] == [45, 45, 65, 82, 35]
    assert [(row["train_miou"], row["last_val_miou"]) for row in rows[3:]] == [(0.65, 0.31), (0.65, 0.28)]
    gains = {row["name"]: (row["gain"], row["gain_percent"]) for row in reference_rows(study)}
    assert gains["Model 1 DeepLabV3 R50 multi-scale"] == (pytest.approx(0.1269), pytest.approx(33.8, abs=0.05))


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_study, "models: {B0: weights/b0}\n", "a study of agreement, not a study.*agreement run --study"),
        (read_study, "base: a.yaml\ngrid: {data.root: [1]}\n", "this is a sweep, not a study.*segformer-spark sweep"),
        (read_study, "training: {epochs: 3}\n", "this is a configuration, not a study.*train --config"),
        (read_sweep, "base: a.yaml\nmodels: {a: {}}\n", "this is a study, not a sweep.*compare run"),
        (load_config, "base: a.yaml\nmodels: {a: {}}\n", "this is a study, not a configuration.*compare run"),
        (load_config, "base: a.yaml\nruns: [{}]\n", "this is a sweep, not a configuration.*segformer-spark sweep"),
        (read_agreement_study, "base: a.yaml\nmodels: {a: {}}\n", "this is a study, not a study of agreement"),
    ],
)
def test_a_file_of_another_kind_names_its_verb(tmp_path: Path, read: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, text))
