"""A packed copy of a split: few large files, memory-mapped, images at a chosen size.

    <folder>/<dataset>-<split>-<size>-<storage>-<digest>/
        shard-00000.bin     for each image: its pixels, then its class ids (zlib)
        shard-00000.json    [offset, image bytes, mask bytes, height, width, crc32 of image, crc32 of mask] per image
        cache.json          written last: a folder without it is unfinished, and is continued

Keyed by the digest of the manifest, so a cache of other files is never taken. Storage:

- original: the bytes of the image file, at native size only;
- raw: decoded RGB; at size S the very pixels that training from the files at that size sees, before augmentation;
- jpeg: encoded anew, smaller and not exact.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.config.image_size import Size, parse_size, size_text
from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import Box, ClassInfo, Sample
from segformer_spark.data.decode import Decoding, decode_rgb, image_of
from segformer_spark.data.files import ReadFile, read_file
from segformer_spark.data.identity import FileDigests
from segformer_spark.data.manifest import check_matches, manifest_path, read_manifest
from segformer_spark.data.tables import BoxTable, PathPairs, StringTable
from segformer_spark.errors import DataError
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import logger

JPEG_QUALITY = 95
FORMAT = 3
"""Formats 1 and 2 hold masks and turned images as versions before read them."""

META = "cache.json"


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Where a shard's bytes (bin) or records (json) lie."""
    return folder / f"shard-{number:05d}.{suffix}"


def decoding_key(config: DataConfig) -> dict[str, Any]:
    """The settings that decide how files are decoded."""
    settings = json.loads(config.model_dump_json())
    names = ["exif_orientation", "nearest_color", "palette_masks", *(["folder"] if config.dataset == "folder" else [])]
    return {name: settings[name] for name in names}


class CachedDataset:
    """A finished cache, as a data set. Each process maps the shards when it first reads from them."""

    def __init__(self, folder: Path, config: DataConfig, needed_size: Size | None = None) -> None:
        """Open the cache of the training split.

        Args:
            folder: a cache, or a folder with caches, of which the one for this manifest and size is taken.

        Raises:
            DataError: there is none that is finished and of the manifest's files.
        """
        self.folder = find_cache(folder, config)
        meta = _read_meta(self.folder)
        names, colors, background = meta["classes"]
        self.classes = ClassInfo(tuple(names), tuple((r, g, b) for r, g, b in colors), background)
        self.categories: Sequence[str] = tuple(meta["groups"])  # the name on disk since format 1
        self.root, self.size, self.storage = Path(config.root), _size(meta), meta["storage"]
        self.digest: str = meta["digest"]
        images: list[dict[str, Any]] = meta["images"]
        self._ids = StringTable(image["id"] for image in images)
        self._categories = np.array([image["group"] for image in images], np.int32)
        self._files = PathPairs((Path(image), Path(mask)) for image, mask in (own["files"] for own in images))
        self._boxes = BoxTable(image["box"] for image in images)
        self._records = np.array(
            [[number, *record] for number, records in enumerate(meta["shards"]) for record in records], np.int64
        )
        self.needed_size, self.decoding = needed_size, Decoding.of(config)
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def fidelity(self) -> str:
        """exact, or how the images differ from the files'."""
        size = "native size" if self.size is None else size_text(self.size)
        return "exact" if self.storage != "jpeg" else f"jpeg {JPEG_QUALITY} at {size}"

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, index: int, read: ReadFile = read_file) -> Sample:
        """Decode a record; its files are not read."""
        number, offset, num_image, num_mask, height, width, image_crc, mask_crc = self._records[index].tolist()
        stored = memoryview(self._map(number))[offset : offset + num_image + num_mask]
        image, mask = stored[:num_image], stored[num_image:]
        if len(mask) != num_mask or zlib.crc32(image) != image_crc or zlib.crc32(mask) != mask_crc:
            raise DataError(
                f"{shard_path(self.folder, number, 'bin')}: image {index} is damaged; remove the folder and build the "
                "cache again"
            )
        ids = np.frombuffer(bytearray(zlib.decompress(mask)), np.uint8).reshape(height, width)
        if self.storage == "raw":
            return Sample(np.frombuffer(image, np.uint8).reshape(height, width, 3), ids)
        file = image_of(bytes(image), self.files(index)[0], self.decoding)
        return Sample(decode_rgb(file, self.decoding, self.needed_size), ids)

    def sample_id(self, index: int) -> str:
        return self._ids[index]

    def category(self, index: int) -> int:
        return int(self._categories[index])

    def files(self, index: int) -> tuple[Path, Path]:
        image, mask = self._files[index]
        return self.root / image, self.root / mask

    def box(self, index: int) -> Box | None:
        return self._boxes[index]

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Read everything; raises DataError naming the first damaged shard. `progress` is called after each image."""
        for index in range(len(self)):
            self.load(index)
            progress(1)

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            path = shard_path(self.folder, number, "bin")
            try:
                with path.open("rb") as stream:
                    self._maps[number] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: the shard cannot be read: {error}; build the cache again") from error
        return self._maps[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = read_json_object(folder / META)
    except DataError as error:
        raise DataError(f"{folder}: this is not a finished cache: {error}") from error
    if meta.get("format") not in range(1, FORMAT + 1):
        raise DataError(f"{folder}: cache format {meta.get('format')}, this version reads {FORMAT}; build it again")
    return meta


def _size(meta: dict[str, Any]) -> Size | None:
    """(height, width) of its images; None at native size."""
    return None if meta["size"] is None else parse_size(meta["size"])


def find_cache(folder: Path, config: DataConfig) -> Path:
    """The cache at `folder`, or the one in it that fits; exact ones first."""
    candidates = [folder] if (folder / META).is_file() else sorted(path.parent for path in folder.glob(f"*/{META}"))
    known = read_manifest(config, config.train_split).digest if manifest_path(config).is_file() else None
    refusals, usable = [], []
    for candidate in candidates:
        meta = _read_meta(candidate)
        reason = _refusal(meta, config, known)
        if reason is None:
            usable.append((meta["storage"] == "jpeg", meta["size"] is None, candidate))
        else:
            refusals.append(f"{candidate.name}: {reason}")
    if not usable:
        listed = "; ".join(refusals) or "there is no finished cache"
        raise DataError(
            f"data.cache {folder}: {listed}. Build one with: segformer-spark data cache --root {config.root} "
            f"--dataset {config.dataset} --split {config.train_split} --output {folder}"
        )
    return min(usable)[2]


def _refusal(meta: dict[str, Any], config: DataConfig, digest: str | None) -> str | None:
    if (meta["dataset"], meta["split"]) != (config.dataset, config.train_split):
        return f"it is of {meta['dataset']}, split {meta['split']}"
    if meta["format"] == 1 and meta["size"] is not None:
        return "its images were resized by version 0.1, wrongly where one side shrank and the other grew"
    if meta["format"] != FORMAT:
        return "it was built by an earlier version, which read turned images and palettes in another way"
    changed = [f"data.{name}" for name, value in decoding_key(config).items() if meta["decoding"].get(name) != value]
    if changed:
        return f"{' and '.join(changed)} was another when it was built"
    if digest is not None and meta["digest"] != digest:
        return "the manifest no longer matches: it was built from other files"
    if (size := _size(meta)) not in (None, config.input_size):
        return f"its images have {size_text(size)} px, data.image_size is {size_text(config.image_size)}"
    return None


def check_source(dataset: CachedDataset, config: DataConfig, files: FileDigests | None = None) -> None:
    """Compare a cache with the files it was made from, as far as they can be seen from here. For rank 0.

    Args:
        files: what is known of their contents already.

    Raises:
        DataError: the files were changed since.
    """
    if not dataset.root.is_dir():
        logger.warning(
            "%s: the files that it was made from are not at %s; it is taken as it is", *(dataset.folder, dataset.root)
        )
    elif manifest_path(config).is_file():
        check_matches(read_manifest(config, config.train_split), dataset, dataset.root, files)
    elif (files or FileDigests(dataset.root)).of_split(dataset) != dataset.digest:
        raise DataError(
            f"{dataset.folder}: the files at {dataset.root} were changed since the cache was built",
            "Run `segformer-spark data check` and build the cache again.",
        )
