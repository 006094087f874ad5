"""One way to ask a finished model: what a session answers, and which settings the verbs take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.config.schema import ModelConfig
from segformer_spark.config.stored import load_stored_config
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import UserError
from segformer_spark.evaluation.decision import ARGMAX
from segformer_spark.evaluation.session import InferenceSettings, OpenedModel, Session
from segformer_spark.models.registry import build_network
from tests.sessions import group_of_one
from tests.tiny import tiny_segformer, untrained_card
from tests.verbs import leave, run_verb


@pytest.mark.parametrize("part", ["", "best"])
def test_the_answers_go_together(trained_run: Path, part: str) -> None:
    """Of a run or of its model's folder: argmax of probabilities, softmax of logits, features by name."""
    data = load_stored_config(trained_run / "config.yaml").config.data
    with group_of_one() as group:
        session = Session.open(trained_run / part, InferenceSettings(batch_size=3), group, data)
        assert session.run == trained_run
        assert not session.model.training
        indices = range(len(session.labelled()))
        predictions = {item.index: ids for item, ids in session.predictions(session.items(indices))}
        assert sorted(predictions) == list(indices)
        for item, probabilities in session.probabilities(session.items(indices)):
            assert probabilities.shape == (3, *item.size)
            torch.testing.assert_close(probabilities.sum(0), torch.ones(item.size))
            assert torch.equal(probabilities.argmax(0).to(torch.uint8), predictions[item.index])
        for item, logits in session.logits(session.items([0, 1])):
            full = torch.nn.functional.interpolate(logits[None], size=item.size, mode="bilinear")[0]
            assert torch.equal(full.argmax(0).to(torch.uint8), predictions[item.index])
        for _, maps in session.features(session.items([0]), ["stage4"]):
            assert maps["stage4"].shape[0] == 8


def test_without_a_data_set_it_predicts_files(trained_run: Path, spark_root: Path) -> None:
    files = sorted((spark_root / "stream-1-test").iterdir())
    with group_of_one() as group:
        session = Session.open(trained_run, InferenceSettings(), group)
        assert session.dataset is None
        found = [item.index for item, _ in session.predictions(session.file_items(files, range(len(files))))]
    assert found == list(range(len(files)))


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with group_of_one() as group, pytest.raises(UserError):
        Session.open(tmp_path, InferenceSettings(), group)


def member(seed: int, size: int, name: str = "segformer", **inference: object) -> OpenedModel:
    config = ModelConfig(name="unet", encoder="resnet18", pretrained="none")
    torch.manual_seed(seed)
    if name == "segformer":
        model = tiny_segformer(SPARK_CLASSES.names, seed=seed)
    else:
        model = build_network(config, 3, (size, size))
    card = untrained_card(SPARK_CLASSES, image_size=size, inference=inference)
    return OpenedModel(Path(), None, model.eval(), card)


@pytest.mark.parametrize("tta", ["none", "hflip+scales"])
def test_an_ensemble_is_the_mean_probability_of_its_members(spark_root: Path, tta: str) -> None:
    """Of other sizes and architectures; whatever the batch size."""
    dataset = open_dataset(load_config(overrides=[f"data.root={spark_root}"]).config.data, "val")
    members = [member(0, 64), member(1, 96), member(2, 64, "unet")]
    settings = InferenceSettings(batch_size=2, tta=tta)
    with group_of_one() as group:
        alone = [
            [found for _, found in one.probabilities(one.items(range(3)))]
            for one in (Session([model], settings, group, dataset) for model in members)
        ]
        together = Session(members, settings, group, dataset)
        assert [p.decision for p in together.predictor.members] == [ARGMAX, ARGMAX]
        ids = [found for _, found in together.predictions(together.items(range(3)))]
        for index, (item, found) in enumerate(together.probabilities(together.items(range(3)))):
            expected = torch.stack([own[index] for own in alone]).mean(0)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert len(item.members) == 2
            assert (expected.argmax(0) != ids[index]).float().mean() < 1e-3
        assert together.weights_file == members[0].weights_file


def test_crops_of_members_have_to_agree(spark_root: Path) -> None:
    with group_of_one() as group, pytest.raises(UserError, match="are shown different crops"):
        Session([member(0, 64, crops="two_pass"), member(1, 96, crops="two_pass")], InferenceSettings(), group, None)


def test_settings_that_evaluation_does_not_use_are_refused_by_name(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("training.precision=bf16", "training.batch_size=2", "training.optimizer.lr=1")
    given = [part for setting in settings for part in ("--set", setting)]
    assert leave("evaluate", str(trained_run), "--output", str(tmp_path), *given) == 2
    message = capsys.readouterr().err
    assert "--set training.precision, training.batch_size, training.optimizer.lr: evaluate does not use them" in message
    assert "--precision in place of training.precision, --batch-size in place of training.batch_size" in message


def test_a_training_jobs_variables_are_named_in_one_line_and_not_refused(trained_run: Path, tmp_path: Path) -> None:
    variables = {"LEARNING_RATE": "1e-3", "ZERO_STAGE": "2", "BATCH_SIZE": "2", "DEVICE": "cpu"}
    done = run_verb("evaluate", str(trained_run), "--output", str(tmp_path / "out"), "--from-env", **variables)
    assert done.returncode == 0, done.stderr
    named = [line for line in (done.stdout + done.stderr).splitlines() if "not used by evaluate" in line]
    assert len(named) == 1
    assert named[0].endswith("in the environment and not used by evaluate: LEARNING_RATE, ZERO_STAGE")


def test_fp32_and_eight_images_unless_given(trained_run: Path, tmp_path: Path) -> None:
    assert InferenceSettings() == InferenceSettings(precision="fp32", batch_size=8)
    assert run_verb("evaluate", str(trained_run), "--output", str(tmp_path / "out")).returncode == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())["record"]
    assert record["precision"] == "fp32"
