"""Puts faults into copies of the package and runs the tests of the package that each is in.

    python -m tests.mutate --seed 20 --number 30 --work /tmp/mutants > list.md

Operators and places are drawn from the seed, at least one place in every package. Runs no suite by itself: pytest does
not collect it. A fault is noticed when a test fails, or does not end in time.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segformer_spark"
TESTS = {"verbs": ["tests/test_cli.py", "tests/test_data_verbs.py"]}
SECONDS = 400

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}


@dataclass(frozen=True)
class Fault:
    """One replacement in one file."""

    path: Path
    line: int
    start: int
    end: int
    before: str
    after: str

    @property
    def package(self) -> str:
        return self.path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    def put_into(self, root: Path) -> None:
        path = root / self.path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: self.start] + self.after + text[self.end :], encoding="utf-8")


def faults(path: Path) -> Iterator[Fault]:
    """All that the operators allow in a file, outside of annotations and declarations of settings."""
    text = path.read_text(encoding="utf-8")
    offsets = [0]
    for line in text.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    lines = text.splitlines()

    def offset(line: int, column: int) -> int:
        return offsets[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[Fault]:
        known = SWAPS.get(type(operator))
        assert left.end_lineno is not None
        assert left.end_col_offset is not None
        start, end = offset(left.end_lineno, left.end_col_offset), offset(right.lineno, right.col_offset)
        if known is not None and known[0] in text[start:end]:
            place = start + text[start:end].index(known[0])
            yield Fault(path, left.end_lineno, place, place + len(known[0]), *known)

    skipped = {
        id(inner)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None
        for inner in ast.walk(node.annotation)
    }
    for node in ast.walk(ast.parse(text)):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from between(node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, node.op)
        elif isinstance(node, ast.BoolOp):
            yield from between(node.values[0], node.values[1], node.op)
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            start = offset(node.lineno, node.col_offset)
            yield Fault(path, node.lineno, start, start + len(str(node.value)), str(node.value), str(not node.value))


def draw(seed: int, number: int) -> list[Fault]:
    """One fault in every package, the rest anywhere."""
    generator = random.Random(seed)
    by_package: dict[str, list[Fault]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent != PACKAGE:
            for fault in faults(path):
                by_package.setdefault(fault.package, []).append(fault)
    drawn = [generator.choice(by_package[name]) for name in sorted(by_package)]
    everywhere = [fault for found in by_package.values() for fault in found if fault not in drawn]
    return drawn + generator.sample(everywhere, number - len(drawn))


def is_noticed(fault: Fault, copy: Path) -> tuple[bool, str]:
    """Whether the tests of the fault's package fail, and the first that does."""
    for name in ("segformer_spark", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("configs", "ds_configs", "slurm", "docs", "pyproject.toml", "README.md", "weights"):
        if (ROOT / name).exists():
            (copy / name).symlink_to(ROOT / name)
    fault.put_into(copy)
    tests = TESTS.get(fault.package, [f"tests/{fault.package}"])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "TMPDIR": str(copy)}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return True, "did not end"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode != 0, failed[0].split(" - ")[0].split(" ", 1)[1] if failed else ""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--number", type=int, default=30)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args(argv)
    drawn = draw(arguments.seed, arguments.number)

    def check(number: int) -> str:
        fault, copy = drawn[number], arguments.work / str(number)
        copy.mkdir(parents=True)
        noticed, by = is_noticed(fault, copy)
        shutil.rmtree(copy, ignore_errors=True)
        place = f"{fault.path.relative_to(PACKAGE)}:{fault.line}"
        row = f"| {place} | `{fault.before}` → `{fault.after}` | {'yes' if noticed else 'NO'} | {by} |"
        print(row, file=sys.stderr, flush=True)
        return row

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(check, range(len(drawn))))
    print("| place | fault | noticed | by |\n|---|---|---|---|")
    print("\n".join(sorted(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
