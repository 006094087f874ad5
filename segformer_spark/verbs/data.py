"""`data init`, `make-demo`, `check`, `stats`, `preview`, `cache`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs import data_init
from segformer_spark.verbs.arguments import (
    IMAGE_SIZE_HELP,
    Subparsers,
    add_actions,
    add_from_env,
    add_set,
    add_verb,
    image_size,
    not_negative,
    positive,
)

if TYPE_CHECKING:
    from segformer_spark.config.schema import Config
    from segformer_spark.data.dataset import SegmentationDataset
    from segformer_spark.data.scan import ItemFacts


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "data", "Prepare data sets.")
    data_init.add(actions)
    _add_make_demo(actions)
    parser = add_verb(
        actions,
        "check",
        "Read every file once, name what is wrong, write the manifest; status 1 if anything is wrong.",
        "segformer-spark data check --dataset spark --root /scratch/spark --splits train val",
        check,
    )
    _add_source(parser)
    parser.add_argument("--splits", nargs="+", default=None, help="(default: the configuration's train and val)")
    parser.add_argument("--show", type=positive, default=20, help="problems to print (default: %(default)s)")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="write a new manifest although files have changed since the one that stands",
    )
    parser = add_verb(
        actions,
        "stats",
        "Class shares, object sizes, brightness, class occupancy maps, class weights; as JSON and figures.",
        "segformer-spark data stats --dataset spark --root /scratch/spark --output stats/spark",
        stats,
    )
    _add_source(parser)
    parser.add_argument("--split", default=None, help="(default: the configuration's train split)")
    parser.add_argument("--output", type=Path, default=Path("stats"), help="folder (default: %(default)s)")
    parser = add_verb(
        actions,
        "preview",
        "A contact sheet of what the model is fed in training, with the mask over it.",
        "segformer-spark data preview --config configs/spark_b2.yaml --set data.root=DIR --output sheet.png",
        preview,
    )
    _add_source(parser)
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    parser.add_argument("--num-images", type=positive, default=12, help="(default: %(default)s)")
    parser.add_argument("--epoch", type=not_negative, default=0, help="each has other crops (default: %(default)s)")
    parser = add_verb(
        actions,
        "cache",
        "Pack a split into few memory-mapped files; continues where it was cut off. Needs `data check` first.",
        "segformer-spark data cache --config configs/spark_b2.yaml --size 512 --output /scratch/cache",
        cache,
    )
    _add_source(parser)
    parser.add_argument("--split", default=None, help="(default: the configuration's train split)")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="folder for caches, for data.cache (default: <root>/cache)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=None,
        metavar="PIXELS|native",
        help=f"{IMAGE_SIZE_HELP}; native keeps every image's own (default: native)",
    )
    parser.add_argument(
        "--images",
        choices=("original", "raw", "jpeg"),
        default=None,
        help="original bytes (native size only), raw pixels, or JPEG, which is smaller and not exact "
        "(default: original at native size, else raw)",
    )
    parser.add_argument("--verify", action="store_true", help="read the finished cache once more")


def _add_make_demo(actions: Subparsers) -> None:
    parser = add_verb(
        actions,
        "make-demo",
        "Render a data set that lies on disk as SPARK, or StreetHazards with anomalies, does.",
        "segformer-spark data make-demo --root data/demo --num-train 600 --num-val 100 --num-test 20 --size 256",
        make_demo,
    )
    parser.add_argument(
        "--dataset", choices=("spark", "street_hazards"), default="spark", help="layout (default: %(default)s)"
    )
    parser.add_argument("--root", type=Path, required=True, help="folder to create")
    parser.add_argument("--num-train", type=positive, default=600, help="training images (default: %(default)s)")
    parser.add_argument("--num-val", type=positive, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--num-test", type=positive, default=20, help="test images (default: %(default)s)")
    parser.add_argument(
        "--size", type=positive, default=256, help="side in pixels, for streets the height (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=not_negative, default=0, help="the same seed gives the same bytes (default: %(default)s)"
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=None, help="YAML file that names the data set")
    parser.add_argument(
        "--dataset",
        default=None,
        help="spark, camvid, ade20k, cityscapes, voc, pets, pets_without_border, street_hazards or folder "
        "(default: the configuration's)",
    )
    parser.add_argument("--root", default=None, help="folder of the data set (default: the configuration's)")
    parser.add_argument("--num-workers", type=not_negative, default=None, help="reading processes")
    add_from_env(parser)
    add_set(parser)


def _size(text: str) -> tuple[int, int] | None:
    return None if text == "native" else image_size(text)


def _config(arguments: argparse.Namespace) -> Config:
    from segformer_spark.config.load import load_config
    from segformer_spark.run.console import setup_logging
    from segformer_spark.verbs.overrides import refuse_without_effect

    setup_logging()
    given = {"dataset": arguments.dataset, "root": arguments.root, "num_workers": arguments.num_workers}
    named = [f"data.{key}={value}" for key, value in given.items() if value is not None]
    environment = os.environ if arguments.from_env else None
    config = load_config(arguments.config, overrides=[*named, *arguments.overrides], environment=environment).config
    refuse_without_effect(arguments.overrides, config)
    return config


def _scan(dataset: SegmentationDataset, config: Config, label: str, *, occupancy: bool = False) -> list[ItemFacts]:
    from segformer_spark.data.scan import scan
    from segformer_spark.run.console import progress

    return list(progress(scan(dataset, config.data.num_workers, occupancy=occupancy), total=len(dataset), label=label))


def make_demo(arguments: argparse.Namespace) -> int:
    """Render a SPARK-shaped or a StreetHazards-shaped set."""
    from segformer_spark.data.demo.streets import write_street_set
    from segformer_spark.data.demo.write import write_demo_set
    from segformer_spark.run.console import logger, setup_logging

    setup_logging()
    numbers = (arguments.num_train, arguments.num_val, arguments.num_test)
    if arguments.dataset == "street_hazards":
        size = (arguments.size, round(arguments.size * 16 / 9))
        write_street_set(arguments.root, numbers=numbers, size=size, seed=arguments.seed)
        logger.info("rendered %d + %d + %d street scenes", *numbers)
        return 0

    def say(split: str, done: int, total: int) -> None:
        if done == total:
            logger.info("rendered %d %s images", total, split)

    num_train, num_val, num_test = numbers
    write_demo_set(
        arguments.root,
        num_train=num_train,
        num_val=num_val,
        num_test=num_test,
        size=arguments.size,
        seed=arguments.seed,
        progress=say,
    )
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Read everything; 1 when something is wrong."""
    from segformer_spark.data.manifest import changes_since, manifest_path, write_manifest
    from segformer_spark.data.registry import open_dataset
    from segformer_spark.data.scan import find_duplicates
    from segformer_spark.run.console import logger

    config = _config(arguments)
    _refuse_unwritable(manifest_path(config.data))
    facts: dict[str, list[ItemFacts]] = {}
    names: Sequence[str] = ()
    for split in arguments.splits or [config.data.train_split, config.data.val_split]:
        dataset = open_dataset(config.data.whole, split, check_files=False)
        facts[split], names = _scan(dataset, config, f"checking {split}"), dataset.classes.names
        _say_split(split, facts[split], names)
    problems = [problem for items in facts.values() for item in items for problem in item.problems]
    problems += find_duplicates(facts)
    for split, items in facts.items():
        problems += _findings(split, items, names, config.data.dataset)
    for problem in problems[: arguments.show]:
        logger.warning("%s", problem)
    if len(problems) > arguments.show:
        logger.warning("and %d more; --show %d prints all", len(problems) - arguments.show, len(problems))
    path = manifest_path(config.data)
    changes = [f"{c} since {path}" for s, items in facts.items() for c in changes_since(config.data, s, items, names)]
    if changes and not arguments.accept_changes:
        for change in changes[: arguments.show]:
            logger.warning("%s", change)
        logger.warning(
            "%d files are not those of the manifest, which stays as it is; --accept-changes takes them for good and "
            "writes a new one",
            len(changes),
        )
        return ExitCode.FOUND_WRONG
    write_manifest(path, config.data.dataset, Path(config.data.root), names, facts)
    logger.info("manifest: %s", path)
    logger.info("%s", f"{len(problems)} problems" if problems else "no problems found")
    return ExitCode.FOUND_WRONG if problems else ExitCode.GOOD


def _findings(split: str, items: Sequence[ItemFacts], names: Sequence[str], dataset: str) -> list[str]:
    """What is conspicuous in a split as a whole: the problems; what is only worth knowing is logged."""
    from segformer_spark.data.label_check import label_findings
    from segformer_spark.run.console import logger

    decoded = [item for item in items if item.size is not None]
    notes: dict[str, list[ItemFacts]] = {}
    for item in items:
        for note in item.notes:
            notes.setdefault(note, []).append(item)
    for note, own in notes.items():
        logger.info("%s: %d of %d images %s, first %s", split, len(own), len(items), note, own[0].image)
    others = [item.other_box for item in items if item.other_box]
    if others:
        share = f"{len(others)} of {len(items)}"
        logger.warning("%s: %s labelled boxes do not fit the object in the mask, first %s", split, share, others[0])
    found = label_findings([item.pixels for item in decoded], [item.ignored for item in decoded], names)
    found = [f"{split}: {finding}" for finding in found]
    if dataset == "folder":  # whose class table is the user's own
        return found
    for finding in found:
        logger.warning("%s", finding)
    return []


def _refuse_unwritable(manifest: Path) -> None:
    """Say so before hours of reading, not after."""
    if manifest.parent.is_dir() and not os.access(manifest.parent, os.W_OK):
        raise UserError(
            f"{manifest}: the manifest cannot be written there; put it elsewhere with --set data.manifest=FILE, and "
            "give training the same setting"
        )


def _say_split(split: str, items: Sequence[ItemFacts], names: Sequence[str]) -> None:
    from segformer_spark.run.console import logger

    decoded = [item for item in items if item.size is not None]
    total = sum(sum(item.pixels) + item.ignored for item in decoded)
    columns: list[tuple[Any, ...]] = list(zip(*(item.pixels for item in decoded), strict=True))
    shares = ", ".join(f"{n} {100 * sum(c) / total:.2f} %" for n, c in zip(names, columns, strict=False))
    logger.info("%s: %d images, %d readable: %s", split, len(items), len(decoded), shares or "no pixels")


def stats(arguments: argparse.Namespace) -> int:
    """Write statistics and their figures."""
    from segformer_spark.data.registry import open_dataset
    from segformer_spark.data.statistics import draw_statistics, summarize_split
    from segformer_spark.files.atomic import write_json
    from segformer_spark.run.console import logger

    config = _config(arguments)
    dataset = open_dataset(config.data.whole, arguments.split or config.data.train_split)
    facts = _scan(dataset, config, "reading", occupancy=True)
    summary = summarize_split(facts, dataset.classes)
    write_json(arguments.output / "stats.json", summary)
    for name, one in summary["classes"].items():
        logger.info(
            "%-18s %6.2f %% of pixels, in %d of %d images", name, 100 * one["share"], one["images_with"], len(facts)
        )
    for path in [arguments.output / "stats.json", *draw_statistics(facts, dataset.classes, summary, arguments.output)]:
        logger.info("%s", path)
    return 0


def preview(arguments: argparse.Namespace) -> int:
    """Draw the contact sheet."""
    from segformer_spark.data.preview import write_sheet
    from segformer_spark.data.registry import open_training_set
    from segformer_spark.run.console import logger

    config = _config(arguments)
    dataset = open_training_set(config.data, config.augmentation.crop)
    write_sheet(dataset, config, arguments.output, num_images=arguments.num_images, epoch=arguments.epoch)
    logger.info("contact sheet: %s", arguments.output)
    return 0


def cache(arguments: argparse.Namespace) -> int:
    """Build or finish a cache."""
    from segformer_spark.data.cache import CachedDataset
    from segformer_spark.data.cache_build import CacheOptions, build_cache, cache_folder
    from segformer_spark.data.manifest import check_matches, read_manifest
    from segformer_spark.data.registry import open_dataset
    from segformer_spark.run.console import logger, progress_bar

    config = _config(arguments)
    split = arguments.split or config.data.train_split
    options = CacheOptions(arguments.size, arguments.images or ("original" if arguments.size is None else "raw"))
    manifest = read_manifest(config.data, split)
    dataset = open_dataset(config.data.whole, split)
    check_matches(manifest, dataset, Path(config.data.root))
    parent = arguments.output or Path(config.data.root) / "cache"
    folder = cache_folder(parent, config.data, split, options, manifest.digest)
    with progress_bar(len(dataset), "caching") as advance:
        build_cache(
            dataset, manifest, folder, config.data, options, num_workers=config.data.num_workers, progress=advance
        )
    size = sum(path.stat().st_size for path in folder.iterdir())
    logger.info("%d images, %.2f GiB: %s", len(dataset), size / 2**30, folder)
    if arguments.verify:
        own = config.data.model_copy(
            update={"train_split": split, "image_size": options.size or config.data.input_size}
        )
        with progress_bar(len(dataset), "verifying") as advance:
            CachedDataset(folder, own).verify(advance)
        logger.info("verified: every image and mask has its checksum")
    logger.info("train from it with: --set data.cache=%s", folder)
    return 0
