from __future__ import annotations

import pytest

from segformer_spark.data.grouping import group_names
from segformer_spark.errors import UserError

NAMES = ["day1/0001TP_006690", "day1/0001TP_006720", "day2/Seq05VD_f00000", "day2/x"]


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        (None, NAMES),
        ("category", ["day1", "day1", "day2", "day2"]),
        ("drive", ["day1/0001TP", "day1/0001TP", "day2/Seq05VD_f", "day2/x"]),
        (r"day(\d)", ["1", "1", "2", "2"]),
        ("day.", ["day1", "day1", "day2", "day2"]),
    ],
)
def test_rules(rule: str | None, groups: list[str]) -> None:
    assert group_names(NAMES, rule) == groups


@pytest.mark.parametrize(("rule", "message"), [("(", "no regular expression"), ("TP", "2 of 4 names have no match")])
def test_what_does_not_group_is_refused(rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        group_names(NAMES, rule)
