"""Random inputs to every reader of files: no exception but the package's own. `make fuzz` tries 5,000 of each."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.agreement.ratings import _read_ratings
from segformer_spark.checkpoint.export import card_of
from segformer_spark.checkpoint.store import verify
from segformer_spark.config.load import load_config
from segformer_spark.data.manifest import read_manifest
from segformer_spark.data.readers.lists import read_pair_list
from segformer_spark.data.readers.spark import CSV_COLUMNS, SparkDataset, read_boxes
from segformer_spark.errors import UserError
from segformer_spark.evaluation.result_folder import read_counted
from segformer_spark.evaluation.saved_decision import read_decision
from segformer_spark.evaluation.verify import verify_evaluation
from segformer_spark.models.published_config import read_segformer_config
from segformer_spark.models.weights import check_weights_folder
from segformer_spark.run.lease import read_attempts
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.submission.check import check_archive
from segformer_spark.submission.spark_format import check_prediction
from segformer_spark.submission.verify import verify_submission

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def changed(example: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The example with some of its keys' values replaced, dropped, or others added."""
    return st.builds(
        lambda new, dropped: {k: v for k, v in {**example, **new}.items() if k not in dropped},
        st.dictionaries(st.sampled_from(sorted(example)) | st.text(max_size=6), JSON, max_size=3),
        st.sets(st.sampled_from(sorted(example)), max_size=2),
    )


def allows_own_errors(action: Callable[[], object]) -> None:
    try:
        action()
    except UserError as error:
        assert str(error)


def in_folder(files: dict[str, bytes], action: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        allows_own_errors(lambda: action(Path(folder)))


TEXT = st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=300)
YAML_LIKE = st.lists(
    st.sampled_from(["a", "data", "model", ":", " ", "\n", "-", "[", "]", "{", "}", "&x", "*x", "!!int", "!!python/x",
                     "'", '"', "|", ">", "#", "1", "0x", "1e9", ".nan", "~", "<<", "\t", "%", "@", "?", "root: /x\n"]),
    max_size=40,
).map(lambda parts: "".join(parts).encode())  # fmt: skip


@given(TEXT | YAML_LIKE)
def test_configurations(content: bytes) -> None:
    in_folder({"x.yaml": content}, lambda folder: load_config(folder / "x.yaml"))


@given(st.lists(st.sampled_from([*CSV_COLUMNS, "VenusExpress", "(1, 2, 3, 4)", "a_img.jpg", "..", "\0", '"', ",", "\n",
                                 "\r", "é", "1" * 5000]), max_size=30).map("".join).map(str.encode) | TEXT)  # fmt: skip
def test_tables(content: bytes) -> None:
    header = ",".join(CSV_COLUMNS).encode() + b"\n"
    for whole in (content, header + content):
        in_folder({"train.csv": whole}, lambda folder: SparkDataset(folder, "train"))
        in_folder({"b.csv": whole}, lambda folder: read_boxes(folder / "b.csv"))
        in_folder({"r.csv": whole}, lambda folder: _read_ratings(folder / "r.csv"))


@given(TEXT | st.lists(st.sampled_from(["a.png", "\t", "\n", "..", "/", "b.png", "\\", "\0", " "]), max_size=20)
       .map("".join).map(str.encode))  # fmt: skip
def test_lists(content: bytes) -> None:
    in_folder({"train.txt": content}, lambda folder: read_pair_list(folder / "train.txt", folder, folder))


CARD = {
    "dataset": "spark", "class_names": ["a", "b"], "colors": [[0, 0, 0], [1, 1, 1]], "background": 0, "image_size": 64,
    "inference": {}, "step": 1, "epoch": 1, "metrics": {"miou": 0.5}, "run": "x", "model": {"name": "segformer"},
    "flip_pairs": None, "exif_orientation": "stored", "recipe": {},
}  # fmt: skip
CONFIG = {"model_type": "segformer", "depths": [2, 2, 2, 2], "hidden_sizes": [8, 8, 8, 8], "id2label": {"0": "a"},
          "hidden_act": "gelu", "strides": [4, 2, 2, 2], "attn_implementation": "x/y"}  # fmt: skip


@given(changed(CARD))
def test_cards(raw: dict[str, Any]) -> None:
    try:
        card_of(raw)
    except ValueError as error:
        assert str(error)


@given(changed(CONFIG))
def test_configurations_of_models(raw: dict[str, Any]) -> None:
    in_folder({"config.json": json.dumps(raw).encode()}, read_segformer_config)


@given(st.binary(max_size=200) | st.builds(lambda n, rest: n.to_bytes(8, "little") + rest,
                                           st.integers(0, 2**64 - 1), st.binary(max_size=100)))  # fmt: skip
def test_weights(content: bytes) -> None:
    in_folder({"model.safetensors": content, "fetched.json": b"{}"}, check_weights_folder)


MANIFEST = {"format": 2, "step": 1, "files": {name: {"sha256": "0", "bytes": 1} for name in
            ("model.safetensors", "optimizer.safetensors", "state.json")}}  # fmt: skip
DATA = {"format": 1, "dataset": "spark", "classes": ["a"], "splits": {"train": {
    "digest": "0", "pixels": [1], "damaged": [], "images": [{"image": "a", "mask": "b", "image_sha256": "0"}],
}}}  # fmt: skip


@given(changed(MANIFEST) | JSON)
def test_manifests_of_checkpoints(raw: Any) -> None:
    in_folder(
        {"step-00000001/manifest.json": json.dumps(raw).encode()}, lambda folder: verify(folder / "step-00000001")
    )


@given(changed(DATA) | JSON)
def test_manifests_of_data(raw: Any) -> None:
    def read(folder: Path) -> None:
        config = load_config(overrides=[f"data.root={folder}"]).config.data
        read_manifest(config, "train").stamps()

    in_folder({"manifest.json": json.dumps(raw).encode()}, read)


@given(changed({"job": "1", "restart": 0, "host": "h", "pid": 1, "pid_started": 1.0, "pid_namespace": "x"}) | JSON)
def test_attempts(raw: Any) -> None:
    in_folder({"attempts/0001.json": json.dumps(raw).encode()}, read_attempts)


@given(TEXT | JSON.map(lambda raw: json.dumps(raw).encode()))
def test_rows_of_metrics(content: bytes) -> None:
    in_folder({"metrics.jsonl": content}, lambda folder: MetricsLog(folder / "metrics.jsonl").rows())


DECISION = {"format": 1, "model_sha256": "0" * 64, "rule": "argmax", "temperature": 1.0, "thresholds": {"a": 1.0},
            "floor": 0.1, "tta": "none", "inference": {}, "chosen": {}}  # fmt: skip


@given(changed(DECISION) | JSON)
def test_decisions(raw: Any) -> None:
    def read(folder: Path) -> None:
        path = folder / "decision.json"
        read_decision(path).decision(("a", "b"), path)

    in_folder({"decision.json": json.dumps(raw).encode()}, read)


@given(changed({"zip": "x.zip", "zip_sha256": "0", "files": {}, "model_sha256": "1"}) | JSON, JSON)
def test_submissions(manifest: Any, settings: Any) -> None:
    files = {"manifest.json": json.dumps(manifest).encode(), "settings.json": json.dumps(settings).encode()}
    in_folder(files, verify_submission)


@given(st.binary(max_size=300), JSON)
def test_evaluations(content: bytes, raw: Any) -> None:
    files = {"counts.npz": content, "images.json": json.dumps(raw).encode(), "results.json": json.dumps(raw).encode()}
    in_folder(files, read_counted)
    in_folder(files, verify_evaluation)


def archive(names: list[str], contents: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in zip(names, contents, strict=False):
            zipped.writestr(name or "x", content)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


GOOD = npz(data=np.zeros((4, 4, 3), np.bool_))


@given(
    st.binary(max_size=200)
    | st.builds(archive, st.lists(st.sampled_from(["a_layer.npz", "../x", "/x", "data.npy", "", "é"]), max_size=3),
                st.lists(st.binary(max_size=60) | st.just(GOOD), min_size=3, max_size=3))
    | st.builds(lambda at, bit: GOOD[:at] + bytes([GOOD[at] ^ bit]) + GOOD[at + 1 :],
                st.integers(0, len(GOOD) - 1), st.integers(1, 255))
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_archives_and_predictions(content: bytes) -> None:
    in_folder({"x.zip": content}, lambda folder: check_archive(folder / "x.zip", None))
    in_folder({"x.npz": content}, lambda folder: check_prediction(folder / "x.npz", (4, 4)))
