"""`runs`: the list, one run, curves of several, two evaluations compared, several models as one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.data.grouping import GROUP_BY_HELP
from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_verb

if TYPE_CHECKING:
    from segformer_spark.run.directory import RunDirectory


_DEFAULT_FOLDER = Path("runs")
_ACTIONS = ("list", "show", "plot", "compare", "ensemble")


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "runs",
        "List the runs of a folder, show one, draw the curves of several, while they train, too; compare two "
        "evaluations image by image; or make several models one.",
        "segformer-spark runs plot spark_b2_512 spark_b3_512 --metric miou",
        runs,
    )
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        metavar="list|show|plot|compare|ensemble|FOLDER",
        help="a folder lists the runs in it (default: %(default)s)",
    )
    parser.add_argument(
        "names",
        nargs="*",
        default=[],
        metavar="RUN",
        help="with list: a folder; show: the run; plot: the runs; compare: two runs, or folders that `evaluate` wrote; "
        "ensemble: runs or models",
    )
    parser.add_argument("--folder", type=Path, default=None, help="where the runs lie (default: runs)")
    parser.add_argument("--group-by", default=None, metavar="RULE", help=f"with compare: {GROUP_BY_HELP}")
    parser.add_argument("--metric", default="miou", help="with plot: what to draw (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="with plot: PNG, with a table beside it (default: runs.png); with ensemble: a new folder, which evaluate, "
        "predict and submit take for a run",
    )


def runs(arguments: argparse.Namespace) -> int:
    """Print the list or one run, or draw several."""
    from segformer_spark.run.listing import details, find_runs, summarize, table

    action, names = arguments.action, arguments.names
    if action not in _ACTIONS:
        action, names = "list", [arguments.action, *names]
    if action == "list":
        given = [*([] if arguments.folder is None else [arguments.folder]), *(Path(name) for name in names)]
        if len(given) > 1:
            raise UserError(f"runs: {given[0]} and {given[1]} are two folders; one is listed")
        folder = given[0] if given else _DEFAULT_FOLDER
        found = find_runs(folder)
        if not found:
            print(f"{folder}: no runs yet; start one with: segformer-spark train --config configs/spark_b2.yaml")
        else:
            print("\n".join(table([summarize(run) for run in found])))
        return 0
    folder = arguments.folder or _DEFAULT_FOLDER
    if action == "compare":
        return _compare(names, folder, arguments.group_by)
    if action == "ensemble":
        return _ensemble(names, folder, arguments.output)
    if action == "show":
        if len(names) != 1:
            raise UserError("runs show: which run? For example: segformer-spark runs show spark_b2_512")
        print("\n".join(details(_find(names[0], folder))))
        return 0
    if not names:
        raise UserError("runs plot: which runs? For example: segformer-spark runs plot spark_b2_512 spark_b3_512")
    _plot([_find(name, folder) for name in names], arguments)
    return 0


def _plot(found: list[RunDirectory], arguments: argparse.Namespace) -> None:
    from segformer_spark.run.overlay import overlay_runs

    output = arguments.output or Path("runs.png")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: a PNG file is written; give its name with .png")
    for row in overlay_runs(found, arguments.metric, output):
        print("  ".join(f"{key} {value}" for key, value in row.items() if value is not None))
    print(f"figure: {output}, table: {output.with_suffix('.csv')}")


def _compare(names: list[str], folder: Path, group_by: str | None) -> int:
    from segformer_spark.evaluation.paired import compare_evaluations, paired_table

    if len(names) != 2:
        raise UserError("runs compare: which two? For example: segformer-spark runs compare spark_b2_512 spark_b3_512")
    found = [_evaluation_of(name, folder) for name in names]
    print("\n".join(paired_table(compare_evaluations(found[0], found[1], group_by))))
    return 0


def _ensemble(names: list[str], folder: Path, output: Path | None) -> int:
    from segformer_spark.evaluation.session import make_ensemble
    from segformer_spark.run.console import logger, setup_logging

    if len(names) < 2 or output is None:
        raise UserError("runs ensemble: for example: segformer-spark runs ensemble x-fold0 x-fold1 --output runs/x")
    setup_logging(0, 1)
    make_ensemble([next((p for p in (folder / name, Path(name)) if p.exists()), Path(name)) for name in names], output)
    logger.info("%s: %d models, for evaluate, predict and submit", output, len(names))
    return 0


def _evaluation_of(name: str, folder: Path) -> Path:
    """A folder that `evaluate` wrote, or that of a run's validation split."""
    if (Path(name) / "results.json").is_file():
        return Path(name)
    run = _find(name, folder)
    return run.evaluation / run.load_config().config.data.val_split


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
        raise UserError(f"{folder / name}: there is no such run (with config.yaml); {hint}")
    return run
