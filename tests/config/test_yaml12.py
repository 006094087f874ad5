from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.yaml12 import parse, parse_scalar
from segformer_spark.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e-5", 6e-5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("NO", "NO"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("null", None),
        ("~", None),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("'8'", "8"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_scalar(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


def test_infinity_and_nan() -> None:
    assert parse_scalar("-.inf", "test") == -math.inf
    assert math.isnan(parse_scalar(".nan", "test"))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_reads_back(number: float) -> None:
    assert float(parse_scalar(repr(number), "test")) == number


def test_lines_of_keys() -> None:
    _, lines = parse("a: 1\nb:\n  c: 2\n\n  d: 3\n", "x.yaml")
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 5}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
"""Ten to the twelfth values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: 'a' is given twice, first on line 1"),
        ("s:\n  k: 1\n  k: 1\n", "x.yaml:3: 'k' is given twice"),
        ("a: [1, 2\n", "x.yaml:2: this is not valid YAML"),
        ("1: a\n", "x.yaml:1: the key '1' is not a name"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("a: !!int x\n", "a value is not what its tag says"),
        ("a: !!bool maybe\n", "a value is not what its tag says"),
        ("a: !!timestamp 2020-99-99\n", "x.yaml"),
        ("a: \x07\n", "x.yaml"),
        ("a: " + "[" * 100 + "]" * 100, "too deep in each other; the limit is 64 levels"),
        ("a: " + "[" * 100_000, "too deep in each other; the limit is 64 levels"),
        ("a: " + "9" * 5000, "a value is not what its tag says"),
        (BOMB, "too many values, aliases (*name) written out; the limit is 100000"),
    ],
)
def test_refusals_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "x.yaml")
    assert message in str(error.value)
