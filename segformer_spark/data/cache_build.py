"""Builds a cache (data/cache.py has its layout): in parallel, shard by shard, checked against the manifest."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from segformer_spark.config.image_size import Size, setting_of, size_text
from segformer_spark.config.schema import DataConfig
from segformer_spark.data.cache import FORMAT, JPEG_QUALITY, META, decoding_key, shard_path
from segformer_spark.data.dataset import Image, Sample, SegmentationDataset
from segformer_spark.data.files import RememberingReader
from segformer_spark.data.loader import check_labels
from segformer_spark.data.manifest import SplitManifest
from segformer_spark.data.resize import resize_image, resize_mask
from segformer_spark.data.workers import iterate, worker_options
from segformer_spark.errors import ConfigError, DataError, UserError
from segformer_spark.files.atomic import atomic_file, remove_leftovers, write_json
from segformer_spark.files.json_file import read_json

SHARD_IMAGES = 128
LEFTOVER_SECONDS = 600.0


@dataclass(frozen=True)
class CacheOptions:
    """What to build: (height, width) in pixels (None keeps the native size), and how images are stored."""

    size: Size | None
    storage: str

    def __post_init__(self) -> None:
        if self.storage == "original" and self.size is not None:
            raise ConfigError("data cache: original bytes have the original size; take --images raw, or --size native")

    @property
    def label(self) -> str:
        return f"{'native' if self.size is None else size_text(self.size)}-{self.storage}"


def cache_folder(parent: Path, config: DataConfig, split: str, options: CacheOptions, digest: str) -> Path:
    """Where this cache lies; the name is its key: of the manifest's files and how they are decoded."""
    key = hashlib.sha256(f"{digest} {json.dumps(decoding_key(config))} format {FORMAT}".encode()).hexdigest()
    return parent / f"{config.dataset}-{split}-{options.label}-{key[:12]}"


def build_cache(
    dataset: SegmentationDataset,
    manifest: SplitManifest,
    folder: Path,
    config: DataConfig,
    options: CacheOptions,
    *,
    num_workers: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write what is missing of the cache; a finished one is left as it is.

    Args:
        progress: called with the number of images done since the last call.

    Raises:
        DataError: a file is damaged, or is not the one of the manifest.
        UserError: it cannot be written.
    """
    if (folder / META).is_file():
        progress(len(dataset))
        return folder
    # Another process may build the same cache, and writes each file at once.
    remove_leftovers(folder, older_than=LEFTOVER_SECONDS)
    builder = _ShardBuilder(dataset, manifest, folder, options)
    loader: DataLoader[Any] = DataLoader(builder, batch_size=None, **worker_options(num_workers))
    for outcome in iterate(loader):
        if isinstance(outcome, UserError):
            raise outcome
        progress(outcome)
    shards = [read_json(shard_path(folder, number, "json")) for number in range(len(builder))]
    write_json(
        folder / META,
        {
            "format": FORMAT,
            "dataset": config.dataset,
            "split": manifest.split,
            "digest": manifest.digest,
            "size": None if options.size is None else setting_of(options.size),
            "storage": options.storage,
            "jpeg_quality": JPEG_QUALITY if options.storage == "jpeg" else None,
            "decoding": decoding_key(config),
            "classes": [list(dataset.classes.names), list(dataset.classes.colors), dataset.classes.background],
            "groups": list(dataset.categories),
            "images": [
                {
                    "id": dataset.sample_id(i),
                    "group": dataset.category(i),
                    "box": dataset.box(i),
                    "files": [entry["image"], entry["mask"]],
                }
                for i, entry in enumerate(manifest.images)
            ],
            "shards": shards,
        },
    )
    return folder


class _ShardBuilder(Dataset[Any]):
    """Item n writes shard n, if it is not there, and returns its number of images, or the error."""

    def __init__(
        self, dataset: SegmentationDataset, manifest: SplitManifest, folder: Path, options: CacheOptions
    ) -> None:
        self.dataset, self.manifest, self.folder, self.options = dataset, manifest, folder, options

    def __len__(self) -> int:
        return -(-len(self.dataset) // SHARD_IMAGES)

    def __getitem__(self, number: int) -> int | UserError:
        if number >= len(self):
            raise IndexError(number)
        indices = range(number * SHARD_IMAGES, min((number + 1) * SHARD_IMAGES, len(self.dataset)))
        if shard_path(self.folder, number, "json").is_file():
            return len(indices)
        try:
            self._write(number, indices)
        except UserError as error:
            return error
        return len(indices)

    def _write(self, number: int, indices: Sequence[int]) -> None:
        records: list[list[int]] = []
        offset = 0
        with atomic_file(shard_path(self.folder, number, "bin")) as stream:
            for index in indices:
                image, mask, (height, width) = self._encode(index)
                records.append([offset, len(image), len(mask), height, width, zlib.crc32(image), zlib.crc32(mask)])
                stream.write(image)
                stream.write(mask)
                offset += len(image) + len(mask)
        write_json(shard_path(self.folder, number, "json"), records)

    def _encode(self, index: int) -> tuple[bytes, bytes, tuple[int, int]]:
        entry = self.manifest.images[index]
        reader = RememberingReader()
        sample, contents = self.dataset.load(index, reader), reader.contents
        for path, kind in zip(self.dataset.files(index), ("image", "mask"), strict=True):
            _check_digest(path, contents[path], entry[f"{kind}_sha256"])
        check_labels(sample.mask, len(self.dataset.classes), str(self.dataset.files(index)[1]))
        if self.options.size is not None:
            size = self.options.size
            sample = Sample(resize_image(sample.image, size), resize_mask(sample.mask, size))
        height, width = sample.mask.shape
        mask = zlib.compress(np.ascontiguousarray(sample.mask).tobytes(), 1)
        content = contents[self.dataset.files(index)[0]]
        return self._encode_image(sample.image, content), mask, (height, width)

    def _encode_image(self, image: Image, content: bytes) -> bytes:
        if self.options.storage == "original":
            return content
        if self.options.storage == "raw":
            return np.ascontiguousarray(image).tobytes()
        _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return encoded.tobytes()


def _check_digest(path: Path, content: bytes, expected: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise DataError(
            f"{path}: the file is not the one of the manifest (sha256 differs); run `segformer-spark data check` again"
        )
