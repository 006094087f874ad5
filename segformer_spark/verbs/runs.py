"""`runs`: the list, and one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_verb


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "runs",
        "List the runs of a folder with state, best score and time, or show one; while they train, too.",
        "segformer-spark runs show spark_b2_512",
        runs,
    )
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list", help="(default: %(default)s)")
    parser.add_argument("name", nargs="?", default=None, help="with show: the run")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs lie (default: %(default)s)")


def runs(arguments: argparse.Namespace) -> int:
    """Print the list or one run."""
    import difflib

    from segformer_spark.run.directory import RunDirectory
    from segformer_spark.run.listing import details, find_runs, summarize, table

    if arguments.action == "list":
        if arguments.name is not None:
            raise UserError(f"runs list: {arguments.name} has no effect here", "Give the folder with --folder.")
        found = find_runs(arguments.folder)
        if not found:
            print(
                f"{arguments.folder}: no runs yet; start one with: segformer-spark train --config configs/spark_b2.yaml"
            )
        else:
            print("\n".join(table([summarize(run) for run in found])))
        return 0
    if arguments.name is None:
        raise UserError("runs show: which run? For example: segformer-spark runs show spark_b2_512")
    # A path is taken as it is, a name is looked for in the folder.
    run = next(
        (
            run
            for run in (RunDirectory(arguments.folder / arguments.name), RunDirectory(Path(arguments.name)))
            if run.is_run()
        ),
        None,
    )
    if run is None:
        names = [one.path.name for one in find_runs(arguments.folder)] if arguments.folder.is_dir() else []
        near = difflib.get_close_matches(arguments.name, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}"
        raise UserError(f"{arguments.folder / arguments.name}: there is no such run; {hint}")
    print("\n".join(details(run)))
    return 0
