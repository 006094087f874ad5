"""What a split is, whatever its place and age: the names of its files below the root and the sha256 of their contents.

Size, time of change and inode decide only which files are read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.files import composed
from segformer_spark.errors import DataError
from segformer_spark.files.atomic import write_json
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.regular_file import named
from segformer_spark.run.console import logger

_FORMAT, _THREADS = 1, 16

FileState = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, inode."""


@dataclass(frozen=True)
class FileStamp:
    """A file's content, and the state in which it was read."""

    state: FileState
    sha256: str


def file_state(path: Path) -> FileState:
    """Size, time and inode; raises DataError naming a file that is not there."""
    with named(path):
        status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def relative_name(path: Path, root: Path) -> str:
    """The name below the data set's root."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def pairs_digest(pairs: Iterable[tuple[str, str, str, str]]) -> str:
    """The digest of a split: of image, its sha256, mask, its sha256 of each pair, in order; names in composed form."""
    digest = hashlib.sha256()
    for pair in pairs:
        for part in pair:
            digest.update(f"{composed(part)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class FileDigests:
    """sha256 of the files of a data set. A file that is in the state in which it was read before is not read again."""

    def __init__(self, root: Path, stamps: Mapping[str, FileStamp] | None = None) -> None:
        self.root, self.stamps = root, dict(stamps or {})
        self._fresh: set[str] = set()

    def learn(self, stamps: Mapping[str, FileStamp]) -> None:
        """Take over what is known from elsewhere."""
        self.stamps = {**stamps, **self.stamps}

    def of(self, files: Sequence[Path]) -> list[str]:
        """sha256 of each file.

        Raises:
            DataError: a file cannot be read.
        """
        names = [relative_name(path, self.root) for path in files]
        unseen = [(name, path) for name, path in zip(names, files, strict=True) if name not in self._fresh]
        with ThreadPoolExecutor(_THREADS) as pool:
            states = list(pool.map(file_state, (path for _, path in unseen)))
            changed = [
                (name, path, state)
                for (name, path), state in zip(unseen, states, strict=True)
                if name not in self.stamps or self.stamps[name].state != state
            ]
            if changed:
                size = sum(state[0] for _, _, state in changed) / 2**30
                logger.info("%s: reading %d new or changed files (%.2f GiB)", self.root, len(changed), size)
            for (name, _, state), digest in zip(
                changed, pool.map(_digest, (path for _, path, _ in changed)), strict=True
            ):
                self.stamps[name] = FileStamp(state, digest)
        self._fresh.update(names)
        return [self.stamps[name].sha256 for name in names]

    def of_split(self, dataset: SegmentationDataset) -> str:
        """The digest of a split (`pairs_digest`), equal to that of its manifest."""
        pairs = [dataset.files(index) for index in range(len(dataset))]
        digests = iter(self.of([path for pair in pairs for path in pair]))
        return pairs_digest(
            (relative_name(image, self.root), next(digests), relative_name(mask, self.root), next(digests))
            for image, mask in pairs
        )

    def write(self, path: Path) -> None:
        """Remember the stamps for the next start."""
        files = {name: [*stamp.state, stamp.sha256] for name, stamp in self.stamps.items() if name in self._fresh}
        write_json(path, {"format": _FORMAT, "files": files})


def read_digests(path: Path, root: Path) -> FileDigests:
    """What `FileDigests.write` left; nothing if it cannot be read, since everything can be read again."""
    if not path.is_file():
        return FileDigests(root)
    try:
        raw = read_json_object(path)
        stamps = {
            str(name): FileStamp((int(size), int(time), int(inode)), str(digest))
            for name, (size, time, inode, digest) in raw["files"].items()
        }
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: this list of files cannot be read (%s); all files are read again", path, error)
        return FileDigests(root)
    return FileDigests(root, stamps if raw.get("format") == _FORMAT else {})


def _digest(path: Path) -> str:
    with named(path):
        return sha256_of(path)
