from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.run_names import MAX_LENGTH, distinct, former_slug, slug


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("DeepLabV3 R50", "DeepLabV3_R50"),
        ("DeepLabV3+ R50", "DeepLabV3plus_R50"),
        ("+ flip", "plus_flip"),
        ("Änne", "Anne"),
        ("Ünne", "Unne"),
        ("Straße Łódź", "Strasse_Lodz"),
        ("SegFormer-B0", "SegFormer_B0"),
    ],
)
def test_labels_in_the_characters_of_a_name(label: str, expected: str) -> None:
    assert slug(label) == expected


def test_what_is_equal_or_too_long_gets_a_hash_of_its_labels() -> None:
    labels = [["a b"], ["a/b"], ["c"], ["x" * 80]]
    names = distinct([slug(label) for (label,) in labels], labels)
    assert names[2] == "c"
    assert len(set(names)) == 4
    for name in (names[0], names[1]):
        assert re.fullmatch(r"a_b-[0-9a-f]{6}", name)
    assert len(names[3]) == MAX_LENGTH
    assert names == distinct([slug(label) for (label,) in labels], labels), "the same again"


@given(st.lists(st.text(min_size=1, max_size=90), unique=True, max_size=6))
def test_names_are_distinct_and_valid(labels: list[str]) -> None:
    names = distinct([f"m-{slug(label)}" for label in labels], [[label] for label in labels])
    assert len(set(names)) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) for name in names)


def test_the_earlier_name_is_known() -> None:
    """Runs of 0.1 lie under it."""
    assert former_slug("DeepLabV3+ R50") == "DeepLabV3_R50"
