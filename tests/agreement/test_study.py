from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.agreement.correlation import THRESHOLDS, Correlation, Maximum
from segformer_spark.agreement.findings import write_findings
from segformer_spark.agreement.ratings import Item, read_items
from segformer_spark.agreement.result import ModelAgreement
from segformer_spark.agreement.study import AgreementOptions, Candidate, run_agreement
from segformer_spark.agreement.study_file import read_agreement_study
from segformer_spark.agreement.synthetic import write_synthetic
from segformer_spark.agreement.tables import read_tables
from segformer_spark.cli import main
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.errors import ConfigError, DataError, UserError
from tests.agreement.test_correlation import MAXIMA, PARAMETERS
from tests.sessions import group_of_one


def pair(folder: Path, base: str) -> None:
    for suffix in ("init", "out"):
        cv2.imwrite(str(folder / f"{base}_{suffix}.png"), np.zeros((8, 8, 3), np.uint8))


def ratings(folder: Path, text: str) -> Path:
    path = folder / "ratings.csv"
    path.write_text(text)
    return path


def test_answers_become_shares_and_shares_stay(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    (tmp_path / "._a_init.png").write_bytes(b"")
    answers = ratings(tmp_path, "base,type,answer\nb,x,different\na,y,Same\nb,x,same\nb,x,different\nb,x,different\n")
    items = read_items(tmp_path, answers)
    assert [(item.base, item.kind, item.share_different) for item in items] == [("b", "x", 0.75), ("a", "y", 0.0)]
    assert items[0].after == tmp_path / "b_out.png"
    (only,) = read_items(tmp_path, ratings(tmp_path, "base,share_different\na,0.5\n"))
    assert only == Item("a", "", 0.5, tmp_path / "a_init.png", tmp_path / "a_out.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,answer\na,same\n", "the columns base and share_different"),
        ("base,answer\na,maybe\n", r":2: the answer is 'maybe'"),
        ("base,share_different\na,x\n", r":2: share_different 'x' is not a number"),
        ("base,share_different\na,1.5\n", r":2: share_different 1.5 is not between"),
        ("base,share_different\na,0.5\na,0.5\n", r":3: 'a' is there twice"),
        ("base,share_different\nc,0.5\n", "1 of 1 rated pairs have no images.*'c' without c_init and c_out"),
        ("base,answer\n", "there are no rows"),
        ("answer,base\nsame\n", r":2: the column base is empty"),
    ],
)
def test_bad_ratings(tmp_path: Path, text: str, message: str) -> None:
    pair(tmp_path, "a")
    with pytest.raises(DataError, match=message):
        read_items(tmp_path, ratings(tmp_path, text))
    with pytest.raises(DataError, match="there is no such folder of pairs"):
        read_items(tmp_path / "none", ratings(tmp_path, "base,share_different\na,0.5\n"))


def test_the_whole_study_on_a_trained_model(trained_run: Path, tmp_path: Path) -> None:
    answers = write_synthetic(tmp_path / "pairs", num_pairs=8, size=96)
    items = read_items(tmp_path / "pairs", answers)
    candidates = [Candidate(name, trained_run / "best") for name in ("one", "two")]
    options = AgreementOptions(tmp_path / "out", repeats=50)
    with group_of_one() as group:
        results = run_agreement(candidates, items, options, group)
    assert results[0].changes == results[1].changes
    assert results[0].variant == "custom"
    pairs = list(csv.DictReader((tmp_path / "out/one/pairs.csv").open()))
    assert [row["base"] for row in pairs] == [item.base for item in items]
    thresholds = list(csv.DictReader((tmp_path / "out/correlation_by_threshold.csv").open()))
    assert len(thresholds) == 2 * 49
    assert list(thresholds[0]) == ["model", "threshold", "pearson", "pearson_p", "spearman", "spearman_p", "n"]
    table = list(csv.DictReader((tmp_path / "out/correlation_results.csv").open()))
    kinds = ("pearson", "spearman")
    assert list(table[0]) == [
        *("model", "variant", "parameters", "max_pearson", "max_spearman", "threshold_pearson", "threshold_spearman"),
        *(f"permutation_p_{kind}" for kind in kinds),
        *(f"{end}_{kind}" for kind in kinds for end in ("low", "high")),
        "n",
    ]
    sizes = list(csv.DictReader((tmp_path / "out/correlation_vs_parameters.csv").open()))
    assert [row["maximum"] for row in sizes] == ["max_pearson", "max_spearman"]
    assert list(sizes[0])[1:] == ["r", "r_p", "rho", "rho_p", "r_exact_p", "rho_exact_p", "n"]
    summary = json.loads((tmp_path / "out/summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["against_parameters"]["max_pearson"]["r"] is None
    for figure in ("agreement.png", "correlation_vs_parameters.png"):
        assert (tmp_path / "out" / figure).stat().st_size > 5000
    wall = AgreementOptions(tmp_path / "out", ignored=("wall",))
    with group_of_one() as group, pytest.raises(UserError, match="there is no class wall; it knows background, body"):
        run_agreement(candidates[:1], items, wall, group)


def test_the_verb(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "pairs")
    for arguments in (
        ["agreement", "make-demo", "--root", root, "--pairs", "4"],
        [
            *("agreement", "run", str(trained_run), "--pairs", root, "--ratings", f"{root}/ratings.csv"),
            *("--repeats", "20", "--output", str(tmp_path / "out"), "--ignore-class", "background"),
        ],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "tables and figures" in capsys.readouterr().out
    assert (tmp_path / "out" / trained_run.name / "pairs.csv").is_file()


def test_a_study_file_names_models_and_what_others_found(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "pairs"
    write_synthetic(root, num_pairs=4, size=96)
    study = tmp_path / "study.yaml"
    study.write_text(
        f"models: {{first: {trained_run}, second: {trained_run}/final}}\nignore_class: [background]\n"
        "reference: {first: {max_pearson: 0.178}}\n"
    )
    common = [
        "--pairs",
        str(root),
        "--ratings",
        f"{root}/ratings.csv",
        "--repeats",
        "20",
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as ended:
        main(["agreement", "run", "--study", str(study), *common])
    assert ended.value.code == 0
    first, second = csv.DictReader((tmp_path / "out/correlation_results.csv").open())
    assert [first["model"], second["model"]] == ["first", "second"]
    assert [first["reference_max_pearson"], second["reference_max_pearson"]] == ["0.178", ""]
    for models in ([str(trained_run), "--study", str(study)], []):
        with pytest.raises(SystemExit) as ended:
            main(["agreement", "run", *models, *common])
        assert ended.value.code == 2
        assert "give models, or --study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reference: {}\n", "study.yaml: models: this key is missing"),
        ("models: {a: x}\npairs: y\n", r"study.yaml:2: pairs: there is no such key. Known here: ignore_class, models"),
        ("models: [a]\n", r"study.yaml:1: models: input should be a valid dictionary"),
        ("models: {a: x}\nreference: {b: {max_pearson: 0.1}}\n", "reference of b: it is none of the models"),
        (
            "models: {a: x}\nreference: {a: {pearson: 0.1}}\n",
            r"yaml:2: reference.a.pearson: there is no such key",
        ),
    ],
)
def test_bad_study_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_agreement_study(tmp_path / "study.yaml")


def test_the_ready_study_has_study_as_maxima() -> None:
    study = read_agreement_study(PROJECT_ROOT / "configs" / "study" / "a_agreement.yaml")
    assert [study.reference[f"B{n}"]["max_pearson"] for n in range(6)] == [0.178, 0.264, 0.341, 0.191, 0.427, 0.221]
    assert [study.reference[f"B{n}"]["max_spearman"] for n in range(6)] == [0.182, 0.281, 0.320, 0.154, 0.455, 0.189]
    assert study.models["B5"].name == "segformer-b5-finetuned-ade-640-640"


def published() -> list[ModelAgreement]:
    none = [Correlation(None, None)] * len(THRESHOLDS)
    return [
        ModelAgreement(
            name=f"B{number}",
            variant=f"b{number}",
            parameters=parameters,
            changes=(),
            by_threshold={"pearson": none, "spearman": none},
            maxima={
                "pearson": Maximum(0.1, pearson, 0.013 if number == 4 else 0.3, None, None),
                "spearman": Maximum(0.2, spearman, 0.005 if number == 4 else 0.4, None, None),
            },
            num_items=48,
        )
        for number, (parameters, pearson, spearman) in enumerate(zip(PARAMETERS, *MAXIMA.values(), strict=True))
    ]


def test_the_summary_is_made_of_the_numbers(tmp_path: Path) -> None:
    """Of study A's table: B5 is above B3 and B0, and nothing but B4's maximum is beyond chance."""
    sizes = write_findings(published(), {}, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    ranking = re.findall(r"^\| (\d) \| (B\d) \|", text, re.MULTILINE)
    assert [name for _, name in ranking[:6]] == ["B4", "B2", "B1", "B5", "B3", "B0"]
    assert [name for _, name in ranking[6:]] == ["B4", "B2", "B1", "B5", "B0", "B3"]
    assert text.count("reach in less than 5 % of cases: B4, of 6 models") == 2
    assert sizes["max_spearman"]["rho_exact_p"] == pytest.approx(0.714, abs=5e-4)
    assert "rho 0.200" in text
    rows = list(csv.DictReader((tmp_path / "correlation_vs_parameters.csv").read_text().splitlines()))
    assert float(rows[0]["rho_exact_p"]) == pytest.approx(0.497, abs=5e-4)
    assert float(rows[0]["r_exact_p"]) == pytest.approx(0.640, abs=5e-3)
    assert float(rows[1]["r_exact_p"]) == pytest.approx(0.821, abs=5e-3)


def test_tables_are_read_back_and_drawn_anew(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = read_items(tmp_path / "pairs", write_synthetic(tmp_path / "pairs", num_pairs=8, size=96))
    reference = {"one": {"max_pearson": 1, "max_spearman": 0.25}}  # a whole number is a number
    with group_of_one() as group:
        options = AgreementOptions(tmp_path / "out", repeats=50, reference=reference)
        results = run_agreement([Candidate("one", trained_run / "best")], items, options, group)
    read, found = read_tables(tmp_path / "out")
    assert found == reference
    (own,), (again,) = results, read
    assert (again.name, again.variant, again.parameters, again.num_items) == (
        *(own.name, own.variant, own.parameters),
        own.num_items,
    )
    for kind in ("pearson", "spearman"):
        assert again.maxima[kind].threshold == own.maxima[kind].threshold
        assert again.maxima[kind].value == pytest.approx(own.maxima[kind].value, abs=1e-6)
        for left, right in zip(again.by_threshold[kind], own.by_threshold[kind], strict=True):
            assert (left.value is None) == (right.value is None)
            assert left.value is None or left.value == pytest.approx(right.value, abs=1e-6)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("correlation*.csv")}
    text = (tmp_path / "out" / "summary.md").read_text()
    for name in ("agreement.png", "correlation_vs_parameters.png", "summary.md"):
        (tmp_path / "out" / name).unlink()
    with pytest.raises(SystemExit) as ended:
        main(["agreement", "report", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert (tmp_path / "out" / "agreement.png").stat().st_size > 5000
    assert (tmp_path / "out" / "summary.md").read_text() == text
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("correlation*.csv")} == before
    with pytest.raises(SystemExit):
        main(["agreement", "report", str(tmp_path / "pairs")])
    assert "the table cannot be read" in capsys.readouterr().err


def test_ratings_without_a_pair_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_synthetic(tmp_path / "pairs", num_pairs=5, size=64)
    rows = "base,share_different\n" + "".join(f"pair_0{number},1\n" for number in range(4)) + "other,0.5\nmore,0\n"
    file = ratings(tmp_path, rows)
    (tmp_path / "pairs" / "pair_03_out.png").unlink()
    with pytest.raises(
        DataError, match=r"3 of 6 rated pairs have no images.*'pair_03' without pair_03_out.*--unpaired skip"
    ):
        read_items(tmp_path / "pairs", file)
    with caplog.at_level("WARNING", logger="segformer_spark"):
        items = read_items(tmp_path / "pairs", file, skip_unpaired=True)
    assert [item.base for item in items] == ["pair_00", "pair_01", "pair_02"]
    assert "and are left out: pair_03, other, more" in caplog.text
    assert "1 pairs were not rated and are left out, first pair_04" in caplog.text
    with pytest.raises(DataError, match="none of the rated pairs has images"):
        read_items(tmp_path / "pairs", ratings(tmp_path, "base,share_different\nx,1\n"), skip_unpaired=True)


def test_missing_models_name_the_commands_that_fetch_them(capsys: pytest.CaptureFixture[str]) -> None:
    study = str(PROJECT_ROOT / "configs" / "study" / "a_agreement.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["agreement", "run", "--study", study, "--pairs", "p", "--ratings", "r.csv"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    for variant in ("b0", "b1", "b2", "b3", "b4", "b5"):
        assert f"segformer-spark weights fetch --variant {variant} --source ade20k --weights-dir weights" in err
