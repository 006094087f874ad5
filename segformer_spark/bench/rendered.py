"""The rendered images that loaders are compared on, and their cache; both are made once."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.config.image_size import Size
from segformer_spark.config.load import load_config
from segformer_spark.data.cache_build import CacheOptions, build_cache, cache_folder
from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.data.manifest import manifest_path, read_manifest, write_manifest
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.scan import scan


def rendered_set(folder: Path, native: int, images: int) -> Path:
    """A SPARK set of that many training images of native x native pixels; returns its root."""
    root = folder / f"rendered_{native}_{images}"
    if not root.is_dir():
        write_demo_set(root, num_train=images, num_val=1, num_test=1, size=native, seed=0)
    return root


def rendered_cache(root: Path, image_size: Size) -> Path:
    """The cache of its training images, decoded, at image_size; returns the folder that caches lie in."""
    config = load_config(overrides=[f"data.root={root}", "data.num_workers=0"]).config.data
    dataset = open_dataset(config.whole, config.train_split)
    if not manifest_path(config).is_file():
        facts = {config.train_split: list(scan(dataset, 0))}
        write_manifest(manifest_path(config), config.dataset, root, dataset.classes.names, facts)
    manifest, options = read_manifest(config, config.train_split), CacheOptions(image_size, "raw")
    caches = root / "cache"
    folder = cache_folder(caches, config, config.train_split, options, manifest.digest)
    build_cache(dataset, manifest, folder, config, options, num_workers=0)
    return caches
