"""Rows in arrays give back what was put into them, and stay shared with forked processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.tables import BoxTable, PathPairs, StringTable
from tests.ranks import ROOT

NAMES = st.binary(max_size=30).map(lambda name: name.replace(b"\0", b"a").decode("utf-8", "surrogateescape"))
NUMBER = st.integers(0, 2**31 - 1)


@given(st.lists(NAMES))
def test_strings(strings: list[str]) -> None:
    table = StringTable(strings)
    assert list(table) == strings
    assert len(table) == len(strings)
    assert [table[-number] for number in range(1, len(strings) + 1)] == strings[::-1]
    assert table[1:3] == strings[1:3]
    for index in (len(strings), -len(strings) - 1):
        with pytest.raises(IndexError):
            table[index]


@given(st.lists(st.tuples(NAMES, NAMES)))
def test_pairs(names: list[tuple[str, str]]) -> None:
    pairs = [(Path(first), Path("masks") / second.lstrip("/")) for first, second in names]
    table = PathPairs(pairs)
    assert list(table) == pairs
    assert table[:2] == pairs[:2]
    assert (pairs[0] in table) if pairs else (len(table) == 0)


@given(st.lists(st.none() | st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)))
def test_boxes(boxes: list[tuple[int, int, int, int] | None]) -> None:
    table = BoxTable(boxes)
    assert [table[index] for index in range(len(boxes))] == boxes


COPIED = """
import multiprocessing, psutil
from pathlib import Path
from segformer_spark.data.tables import PathPairs

def copied(rows):
    own = psutil.Process()
    before = own.memory_full_info().uss
    for index in range(len(rows)):
        rows[index]
    answers.put(own.memory_full_info().uss - before)

def pairs():
    return ((Path(f"/data/images/{n}.jpg"), Path(f"/data/masks/{n}.png")) for n in range(60_000))

context = multiprocessing.get_context("fork")
answers = context.SimpleQueue()
for kind in (list, PathPairs):
    rows = kind(pairs())
    process = context.Process(target=copied, args=(rows,))
    process.start()
    print(answers.get())
    process.join()
    del rows, process
"""
"""Prints the bytes that a forked process has for itself after looking at all rows, beyond those before. In a process
of its own: another would copy much else."""


def test_a_forked_process_copies_no_rows() -> None:
    done = subprocess.run([sys.executable, "-c", COPIED], capture_output=True, text=True, check=True, cwd=ROOT)
    objects, table = (int(line) for line in done.stdout.split())
    assert objects > 2**23, "a list of paths is copied"
    assert table < objects / 4
