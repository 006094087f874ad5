from __future__ import annotations

import pytest

from segformer_spark.checkpoint.compatibility import check_compatible, configuration_state
from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.fields import FIELDS
from segformer_spark.config.load import load_config
from segformer_spark.errors import CheckpointError


def state(
    num_images: int = 100, weights: list[float] | None = None, fidelity: str = "exact", micro: int = 8
) -> dict[str, object]:
    return configuration_state(load_config().config, BatchPlan(micro, 1, 4), num_images, weights, fidelity)


@pytest.mark.parametrize(
    "safe",
    [
        "deepspeed.zero_stage=2",
        "training.batch_size=4",
        "data.num_workers=0",
        "data.root=/elsewhere",
        "output.log_every_steps=1",
        "training.early_stopping.patience=5",
    ],
)
def test_what_may_change(safe: str) -> None:
    check_compatible(state(), load_config(overrides=[safe]).config, BatchPlan(4, 2, 4), state())


@pytest.mark.parametrize(
    ("unsafe", "message"),
    [
        ("training.epochs=50", "training.epochs was 100, now 50"),
        ("training.optimizer.lr=1e-3", "training.optimizer.lr was 6e-05, now 0.001"),
        ("model.variant=b3", "model.variant was 'b2', now 'b3'"),
        ("experiment.seed=1", "experiment.seed"),
        ("augmentation.scale=[0.5, 2.0]", "augmentation.scale"),
    ],
)
def test_what_may_not(unsafe: str, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        check_compatible(state(), load_config(overrides=[unsafe]).config, BatchPlan(8, 1, 4), state())
    assert message in str(error.value)


def test_global_batch_and_data_must_be_the_same() -> None:
    with pytest.raises(CheckpointError, match=r"set training\.global_batch_size=32"):
        check_compatible(state(), load_config().config, BatchPlan(8, 1, 2), state())
    with pytest.raises(CheckpointError, match="had 100 images, now 99"):
        check_compatible(state(), load_config().config, BatchPlan(8, 1, 4), state(99))


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (state(weights=[1.0, 2.0]), r"class weights were None, now \[1.0, 2.0\]"),
        (state(fidelity="jpeg 95 at 512"), "training images were exact, now jpeg 95 at 512"),
    ],
)
def test_weights_from_a_manifest_and_cached_images_are_part_of_the_configuration(
    present: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_compatible(state(), load_config().config, BatchPlan(8, 1, 4), present)


def test_a_checkpoint_of_a_version_without_a_setting() -> None:
    """The setting counts as its default, or as `absent` says where the default behaves in another way."""
    old = state()
    del old["config"]["training"]["accumulation"]  # type: ignore[index]
    del old["config"]["model"]["custom"]  # type: ignore[index]
    check_compatible(old, load_config().config, BatchPlan(8, 1, 4), state())
    mean = load_config(overrides=["training.accumulation=mean"]).config
    with pytest.raises(CheckpointError, match="training.accumulation was 'exact', now 'mean'"):
        check_compatible(old, mean, BatchPlan(8, 1, 4), state())


def test_a_setting_whose_default_is_new_keeps_the_behaviour_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    old, field = state(), FIELDS["training.gradient_clip"]
    del old["config"]["training"]["gradient_clip"]  # type: ignore[index]
    extra = dict(field.info.json_schema_extra or {})  # type: ignore[arg-type]
    monkeypatch.setattr(field.info, "json_schema_extra", {**extra, "absent": 5.0})
    with pytest.raises(CheckpointError, match=r"training.gradient_clip was 5.0, now 1.0"):
        check_compatible(old, load_config().config, BatchPlan(8, 1, 4), state())
    before = load_config(overrides=["training.gradient_clip=5"]).config
    check_compatible(old, before, BatchPlan(8, 1, 4), state())


def test_a_name_of_before_is_the_name_of_today() -> None:
    old = state()
    old["config"]["augmentation"]["crop"]["mode"] = "seed"  # type: ignore[index]
    crops = load_config(overrides=["augmentation.crop.mode=original"]).config
    check_compatible(old, crops, BatchPlan(8, 1, 4), state())


def test_a_checkpoint_with_a_setting_that_is_not_known() -> None:
    later = state()
    later["config"]["training"]["telepathy"] = True  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"of another version .* training.telepathy: there is no such key"):
        check_compatible(later, load_config().config, BatchPlan(8, 1, 4), state())
