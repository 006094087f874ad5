from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.readers.lists import read_pair_list, write_pair_list
from segformer_spark.errors import DataError

_NAME = st.text(
    st.characters(exclude_characters="\t\r\n/\0#\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", exclude_categories=["Cs"]),
    min_size=1, max_size=12,
).filter(lambda name: name.strip() and set(name) != {"."})  # fmt: skip


@given(st.lists(st.tuples(_NAME, _NAME), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("lists")
    root, masks = Path("/data/images"), Path("/data/masks")
    pairs = [(root / image, masks / "sub" / mask) for image, mask in names]
    write_pair_list(folder / "train.txt", pairs, root, masks)
    assert read_pair_list(folder / "train.txt", root, masks) == pairs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg a.png", "separated by a tab"),
        ("a.jpg\t", "separated by a tab"),
        ("../a.jpg\ta.png", "leads out of its folder"),
        ("a.jpg\t/etc/passwd", "leads out of its folder"),
        ("# nothing", "there is nothing in this list"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "train.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_pair_list(tmp_path / "train.txt", tmp_path, tmp_path)


def test_no_such_list(tmp_path: Path) -> None:
    (tmp_path / "train.txt").touch()
    with pytest.raises(DataError, match=r"val.txt: there is no such list; .* has train"):
        read_pair_list(tmp_path / "val.txt", tmp_path, tmp_path)


def test_names_that_a_list_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a tab"):
        write_pair_list(tmp_path / "a.txt", [(tmp_path / "a\tb.jpg", tmp_path / "a.png")], tmp_path, tmp_path)
