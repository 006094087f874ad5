"""docs/configuration.md and the variables in docs/slurm.md: `python -m segformer_spark.config.reference`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from segformer_spark.config.environment import LAUNCH_VARIABLES
from segformer_spark.config.fields import FIELDS
from segformer_spark.config.load import PROJECT_ROOT

_INTRODUCTION = """# Configuration

Made from `segformer_spark/config/*schema.py` by `python -m segformer_spark.config.reference`; a test compares the two.

One YAML file per experiment, with YAML 1.2 scalars: `6e-5` is a number, `no` and `12:30:00` are text, a key given
twice is an error. `base: other.yaml` inherits from another file. Precedence: defaults < base < file < environment
(only with `--from-env`, which the batch scripts pass) < `--set section.key=value`. A key marked with * may change when
a run is resumed; another change is refused.
"""


_BEGIN, _END = "<!-- variables: made by config.reference -->", "<!-- end of variables -->"


def render() -> str:
    """The page as Markdown."""
    lines = [_INTRODUCTION]
    section = None
    for dotted, field in FIELDS.items():
        name, _, leaf = dotted.rpartition(".")
        if name != section:
            section = name
            lines += [f"\n## {section}\n", "| key | type | default | environment | meaning |", "|---|---|---|---|---|"]
        env = f"`{field.env}`" if field.env else ""
        default = field.info.default
        shown = "null" if default is None else json.dumps(default if not isinstance(default, BaseModel) else {})
        star = "*" if field.resume_safe else ""
        lines.append(f"| `{leaf}`{star} | {field.type_name} | `{shown}` | {env} | {field.info.description} |")
    lines += ["\n## Variables of the batch scripts\n", "| environment | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in LAUNCH_VARIABLES.items()]
    return "\n".join(lines) + "\n"


def render_variables() -> str:
    """Every environment variable that a job reads, as a table for docs/slurm.md."""
    lines = ["| variable | sets | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | - | {meaning} |" for name, meaning in LAUNCH_VARIABLES.items()]
    for dotted, field in FIELDS.items():
        if field.env:
            star = "*" if field.resume_safe else ""
            lines.append(f"| `{field.env}`{star} | `{dotted}` | {field.info.description} |")
    return "\n".join(lines) + "\n"


def insert_variables(page: str) -> str:
    """The page with the table between its two markers.

    Raises:
        ValueError: the page has no markers.
    """
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{render_variables()}{_END}{after}"


def main(folder: Path = PROJECT_ROOT / "docs") -> None:
    """Write the page, and the table in the page on SLURM."""
    (folder / "configuration.md").write_text(render(), encoding="utf-8")
    slurm = folder / "slurm.md"
    slurm.write_text(insert_variables(slurm.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
