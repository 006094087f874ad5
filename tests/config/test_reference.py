from __future__ import annotations

from segformer_spark.config.fields import FIELDS
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.config.reference import render


def test_the_page_is_made_from_the_schema() -> None:
    page = (PROJECT_ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m segformer_spark.config.reference"


def test_every_field_is_described() -> None:
    assert all(field.info.description for field in FIELDS.values())
