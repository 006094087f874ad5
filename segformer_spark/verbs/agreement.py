"""`agreement`: models and human ratings on changed images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from segformer_spark.verbs.arguments import (
    PRECISIONS,
    Subparsers,
    add_actions,
    add_reading,
    add_verb,
    positive,
    reading,
)
from segformer_spark.verbs.launch import joined


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(
        subparsers, "agreement", "Compare the changes that models and human raters see between two images."
    )
    parser = add_verb(
        actions,
        "run",
        "Segment pairs of images, follow the object, correlate its change with human ratings.",
        "segformer-spark agreement run runs/b0 runs/b1 --pairs pairs --ratings ratings.csv --output agreement",
        run,
    )
    parser.add_argument("models", nargs="*", type=Path, help="run directories, exported or published models")
    parser.add_argument(
        "--study", type=Path, default=None, help="YAML that names the models, such as configs/study/a_agreement.yaml"
    )
    parser.add_argument("--pairs", type=Path, required=True, help="folder of <base>_init.png and <base>_out.png")
    parser.add_argument("--ratings", type=Path, required=True, help="CSV: base and share_different, or base and answer")
    parser.add_argument("--output", type=Path, default=Path("agreement"), help="(default: %(default)s)")
    parser.add_argument(
        "--ignore-class", action="append", default=[], metavar="NAME", help="a class that is no object; may be repeated"
    )
    parser.add_argument("--repeats", type=positive, default=10_000, help="permutations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of permutations and resampling (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, help="images at a time (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--unpaired",
        choices=("error", "skip"),
        default="error",
        help="what to do with ratings that have no pair of images (default: %(default)s)",
    )
    add_reading(parser)
    parser = add_verb(
        actions,
        "report",
        "Make figures and summary anew from the tables of a run.",
        "segformer-spark agreement report agreement",
        report,
    )
    parser.add_argument("folder", type=Path, help="what `agreement run` wrote")
    parser = add_verb(
        actions,
        "make-demo",
        "Write synthetic pairs and ratings, to try it.",
        "segformer-spark agreement make-demo --root data/pairs",
        make_demo,
    )
    parser.add_argument("--root", type=Path, default=Path("data/pairs"), help="(default: %(default)s)")
    parser.add_argument("--pairs", type=positive, default=24, help="how many (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Run the study in one process."""
    from segformer_spark.config.load import load_config
    from segformer_spark.errors import UserError
    from segformer_spark.run.directory import locate_model

    hardware = load_config().config.hardware.model_copy(update={"device": arguments.device})
    with joined(hardware) as group:
        from segformer_spark.agreement.ratings import read_items
        from segformer_spark.agreement.study import AgreementOptions, Candidate, run_agreement
        from segformer_spark.agreement.study_file import read_agreement_study
        from segformer_spark.evaluation.session import InferenceSettings

        if group.world_size > 1:
            raise UserError("agreement runs in one process: start it without torchrun, or with srun --ntasks=1")
        study = read_agreement_study(arguments.study) if arguments.study is not None else None
        if (study is None) == (not arguments.models):
            raise UserError("agreement run: give models, or --study with a file that names them; one of the two")
        _refuse_missing([*(study.models.values() if study else ()), *arguments.models])
        candidates = [Candidate(name, locate_model(path)[0]) for name, path in (study.models if study else {}).items()]
        for path in arguments.models:
            folder, own_run = locate_model(path)
            candidates.append(Candidate(path.name if own_run is None or own_run == path else own_run.name, folder))
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            raise UserError(f"agreement: two models have one name: {', '.join(sorted(names))}")
        options = AgreementOptions(
            output=arguments.output,
            ignored=(*(study.ignored if study else ()), *arguments.ignore_class),
            reference=study.reference if study else {},
            inference=InferenceSettings(
                precision=arguments.precision, batch_size=arguments.batch_size, **reading(arguments)
            ),
            repeats=arguments.repeats,
            seed=arguments.seed,
        )
        items = read_items(arguments.pairs, arguments.ratings, skip_unpaired=arguments.unpaired == "skip")
        run_agreement(candidates, items, options, group)
        print(f"tables and figures: {arguments.output}")
    return 0


def _refuse_missing(paths: Sequence[Path]) -> None:
    """Raise CheckpointError for models that are not there, all at once, with the commands that fetch them."""
    from segformer_spark.errors import CheckpointError
    from segformer_spark.models.weights import fetch_command

    missing = [path for path in paths if not path.exists()]
    if missing:
        commands = [command for path in missing if (command := fetch_command(path)) is not None]
        raise CheckpointError(
            f"there is no such model: {', '.join(map(str, missing))}",
            f"Fetch them on a machine with internet: {'; '.join(commands)}" if commands else "",
        )


def report(arguments: argparse.Namespace) -> int:
    """Figures and summary from tables that exist."""
    from segformer_spark.agreement.findings import write_findings
    from segformer_spark.agreement.tables import read_tables
    from segformer_spark.run.console import setup_logging

    setup_logging()
    results, reference = read_tables(arguments.folder)
    write_findings(results, reference, arguments.folder)
    print(f"figures and summary.md: {arguments.folder}")
    return 0


def make_demo(arguments: argparse.Namespace) -> int:
    """Write the synthetic set."""
    from segformer_spark.agreement.synthetic import write_synthetic

    ratings = write_synthetic(arguments.root, num_pairs=arguments.pairs)
    print(f"pairs: {arguments.root}")
    print(f"ratings, synthetic: {ratings}")
    return 0
