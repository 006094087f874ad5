from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.image_size import height_width, parse_size, setting_of, size_text
from segformer_spark.config.load import load_config, run_name
from segformer_spark.errors import ConfigError

sides = st.integers(32, 4096)


@given(sides, sides)
def test_a_size_is_read_back_from_every_way_to_write_it(height: int, width: int) -> None:
    size = (height, width)
    assert parse_size(size) == parse_size(list(size)) == parse_size(f"{height}x{width}") == size
    assert parse_size(size_text(size)) == size == height_width(setting_of(size))
    assert isinstance(setting_of(size), int) == (height == width)
    assert parse_size(height) == parse_size(str(height)) == (height, height)


@pytest.mark.parametrize(
    "value", [31, 4097, [512, 16], [], [32, 32, 32], "512x", "x", "720X1280", 512.0, True, None, "٥١٢", "-512"]
)
def test_what_is_no_size_is_refused_with_what_would_be(value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a side in pixels from 32 to 4096, or \[height, width\]"):
        parse_size(value)


@pytest.mark.parametrize("text", ["720x1280", "[720, 1280]"])
def test_settings_and_the_environment_take_rectangles(text: str) -> None:
    for options in ({"overrides": [f"data.image_size={text}"]}, {"environment": {"IMAGE_SIZE": text}}):
        config = load_config(**options).config  # type: ignore[arg-type]
        assert (config.data.image_size, config.data.input_size) == ((720, 1280), (720, 1280))
        assert run_name(config) == "spark_b2_720x1280"
    assert load_config(overrides=["data.image_size=[512, 512]"]).config.data.image_size == 512


def test_an_error_names_the_key_and_what_was_given() -> None:
    with pytest.raises(ConfigError, match=r"data.image_size: must be a side .* \(given: '720 x'\)"):
        load_config(overrides=["data.image_size=720 x"])
