from __future__ import annotations

from segformer_spark.config.environment import LAUNCH_VARIABLES, config_variables
from segformer_spark.config.fields import FIELDS
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.config.reference import insert_variables, render, render_variables


def test_the_page_is_made_from_the_schema() -> None:
    page = (PROJECT_ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m segformer_spark.config.reference"


def test_the_table_of_variables_is_made_from_the_code() -> None:
    page = (PROJECT_ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert page == insert_variables(page), "run: python -m segformer_spark.config.reference"
    assert all(f"| `{name}`" in render_variables() for name in (*config_variables(), *LAUNCH_VARIABLES))


def test_every_field_is_described() -> None:
    assert all(field.info.description for field in FIELDS.values())
