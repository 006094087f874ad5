"""`runs`: the list, one run, and curves of several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_verb

if TYPE_CHECKING:
    from segformer_spark.run.directory import RunDirectory


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "runs",
        "List the runs of a folder, show one, or draw the curves of several; while they train, too.",
        "segformer-spark runs plot spark_b2_512 spark_b3_512 --metric miou",
        runs,
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "show", "plot"), default="list", help="(default: %(default)s)"
    )
    parser.add_argument("names", nargs="*", default=[], metavar="RUN", help="with show: the run; with plot: the runs")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs lie (default: %(default)s)")
    parser.add_argument("--metric", default="miou", help="with plot: what to draw (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs.png"),
        help="with plot: PNG, with a table beside it (default: %(default)s)",
    )


def runs(arguments: argparse.Namespace) -> int:
    """Print the list or one run, or draw several."""
    from segformer_spark.run.listing import details, find_runs, summarize, table

    names = arguments.names
    if arguments.action == "list":
        if names:
            raise UserError(f"runs list: {names[0]} has no effect here", "Give the folder with --folder.")
        found = find_runs(arguments.folder)
        if not found:
            print(
                f"{arguments.folder}: no runs yet; start one with: segformer-spark train --config configs/spark_b2.yaml"
            )
        else:
            print("\n".join(table([summarize(run) for run in found])))
        return 0
    if arguments.action == "show":
        if len(names) != 1:
            raise UserError("runs show: which run? For example: segformer-spark runs show spark_b2_512")
        print("\n".join(details(_find(names[0], arguments.folder))))
        return 0
    if not names:
        raise UserError("runs plot: which runs? For example: segformer-spark runs plot spark_b2_512 spark_b3_512")
    _plot([_find(name, arguments.folder) for name in names], arguments)
    return 0


def _plot(found: list[RunDirectory], arguments: argparse.Namespace) -> None:
    from segformer_spark.run.overlay import overlay_runs

    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output {arguments.output}: a PNG file is written; give its name with .png")
    for row in overlay_runs(found, arguments.metric, arguments.output):
        print("  ".join(f"{key} {value}" for key, value in row.items() if value is not None))
    print(f"figure: {arguments.output}, table: {arguments.output.with_suffix('.csv')}")


def _find(name: str, folder: Path) -> RunDirectory:
    """A name is looked for in the folder, a path is taken as it is.

    Raises:
        UserError: there is no such run; similar names are said.
    """
    import difflib

    from segformer_spark.run.directory import RunDirectory
    from segformer_spark.run.listing import find_runs

    run = next((run for run in (RunDirectory(folder / name), RunDirectory(Path(name))) if run.is_run()), None)
    if run is None:
        names = [one.path.name for one in find_runs(folder)] if folder.is_dir() else []
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}"
        raise UserError(f"{folder / name}: there is no such run; {hint}")
    return run
