"""The manifest of a data set: every file with its sha256, every image with its pixels per class.

    {"format": 1, "dataset": "spark", "classes": [...],
     "splits": {"train": {"digest": ..., "num_images": N, "pixels": [...], "ignored": n, "images": [
         {"image": "images/...", "mask": "mask/...", "image_sha256": ..., "mask_sha256": ..., "image_bytes": ...,
          "mask_bytes": ..., "image_state": [time, inode], "mask_state": [...], "size": [h, w], "pixels": [...],
          "ignored": n}, ...]}}}

Paths are relative to the data set's root. A split's digest is that of its paths and sha256 in their order
(`data.identity.pairs_digest`). Manifests of before 0.2 have no states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.identity import FileDigests, FileStamp, pairs_digest, relative_name
from segformer_spark.errors import DataError
from segformer_spark.files.atomic import write_json
from segformer_spark.files.json_file import read_json_object

if TYPE_CHECKING:  # scanning needs torch; reading a manifest, as every rank of a job does, need not
    from segformer_spark.data.scan import ItemFacts

_FORMAT = 1


@dataclass(frozen=True)
class SplitManifest:
    """One split: its digest and its images' entries."""

    split: str
    classes: tuple[str, ...]
    digest: str
    pixels: list[int]
    images: list[dict[str, Any]]
    damaged: list[str]

    def stamps(self) -> dict[str, FileStamp]:
        """{relative name: content and the state in which `data check` read it}."""
        return {
            image[kind]: FileStamp((image[f"{kind}_bytes"], *image[f"{kind}_state"]), image[f"{kind}_sha256"])
            for image in self.images
            for kind in ("image", "mask")
            if f"{kind}_state" in image
        }


def manifest_path(config: DataConfig) -> Path:
    """Where the manifest of a data set lies."""
    return Path(config.manifest.replace("{root}", config.root))


def write_manifest(
    path: Path, dataset: str, root: Path, classes: Sequence[str], facts: Mapping[str, Sequence[ItemFacts]]
) -> None:
    """Write the manifest of all scanned splits. Items that cannot be decoded are only listed, as damaged.

    Splits that were not scanned stay as they are, if the file at `path` is of the same data set and classes.
    """
    splits: dict[str, Any] = _other_splits(path, dataset, classes)
    for split, items in facts.items():
        images = [_entry(item, root) for item in items if item.size is not None]
        splits[split] = {
            "digest": pairs_digest(
                (image["image"], image["image_sha256"], image["mask"], image["mask_sha256"]) for image in images
            ),
            "num_images": len(images),
            "pixels": [sum(column) for column in zip(*(image["pixels"] for image in images), strict=True)],
            "ignored": sum(image["ignored"] for image in images),
            "damaged": [relative_name(item.image, root) for item in items if item.size is None],
            "images": images,
        }
    write_json(path, {"format": _FORMAT, "dataset": dataset, "classes": list(classes), "splits": splits})


def read_manifest(config: DataConfig, split: str) -> SplitManifest:
    """The manifest's part for a split.

    Raises:
        DataError: there is none, it is damaged or empty, or it lacks the split.
    """
    path = manifest_path(config)
    fix = f"make it with: segformer-spark data check --dataset {config.dataset} --root {config.root}"
    if not path.is_file():
        raise DataError(f"{path}: there is no manifest; {fix}")
    try:
        raw = read_json_object(path)
    except DataError as error:
        raise DataError(f"{error}: this is not a manifest that can be read; {fix}") from error
    try:
        if raw["format"] != _FORMAT:
            raise DataError(f"{path}: manifest format {raw['format']}, this version reads {_FORMAT}; {fix}")
        if split not in raw["splits"]:
            raise DataError(
                f"{path}: the manifest has no split {split!r}, only {', '.join(raw['splits']) or 'none'}; {fix}"
            )
        part = raw["splits"][split]
        found = SplitManifest(
            split, tuple(raw["classes"]), part["digest"], part["pixels"], part["images"], part["damaged"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: this is not a manifest that can be read: {error!r}; {fix}") from error
    if not found.images:
        raise DataError(f"{path}: the manifest is empty: split {split!r} has no images; {fix}")
    return found


def check_matches(
    manifest: SplitManifest, dataset: SegmentationDataset, root: Path, files: FileDigests | None = None
) -> None:
    """Compare with the files as they are: classes, names and contents.

    Args:
        files: what is known of their contents already.

    Raises:
        DataError: the manifest is of other files; the first difference is named.
    """
    where = f"the manifest's split {manifest.split!r}"
    fix = "; run `segformer-spark data check` again"
    if manifest.classes != tuple(dataset.classes.names):
        raise DataError(
            f"{where} knows the classes {', '.join(manifest.classes)}, the data set has "
            f"{', '.join(dataset.classes.names)}{fix}"
        )
    if manifest.damaged:
        raise DataError(
            f"{where}: {len(manifest.damaged)} images cannot be read or have unsuitable masks, first "
            f"{manifest.damaged[0]}; repair or remove them, then run `segformer-spark data check` again"
        )
    if len(manifest.images) != len(dataset):
        raise DataError(f"{where} has {len(manifest.images)} images, the data set has {len(dataset)}{fix}")
    for index, entry in enumerate(manifest.images):
        image, mask = (relative_name(path, root) for path in dataset.files(index))
        if (image, mask) != (entry["image"], entry["mask"]):
            raise DataError(f"{where} has {entry['image']} where the data set has {image}{fix}")
    files = files or FileDigests(root)
    files.learn(manifest.stamps())
    paths = [path for index in range(len(dataset)) for path in dataset.files(index)]
    expected = [image[f"{kind}_sha256"] for image in manifest.images for kind in ("image", "mask")]
    changed = [path for path, found, known in zip(paths, files.of(paths), expected, strict=True) if found != known]
    if changed:
        raise DataError(
            f"{changed[0]}: the file has another content than when {where} was made: the files were changed since "
            f"({len(changed)} of them){fix}"
        )


def changes_since(config: DataConfig, split: str, facts: Sequence[ItemFacts], names: Sequence[str]) -> list[str]:
    """What differs of a split's files from the manifest that stands; nothing without one of these classes.

    Args:
        facts: of the files as they are now.
        names: of the classes.
    """
    try:
        before = read_manifest(config, split)
    except DataError:
        return []
    if before.classes != tuple(names):
        return []
    root = Path(config.root)
    known = {image[kind]: image[f"{kind}_sha256"] for image in before.images for kind in ("image", "mask")}
    present = {
        relative_name(path, root): digest
        for item in facts
        for path, digest in ((item.image, item.image_sha256), (item.mask, item.mask_sha256))
    }
    changed = [f"{name}: has other contents" for name in known if name in present and known[name] != present[name]]
    changed += [f"{name}: is gone" for name in known if name not in present]
    return changed + [f"{name}: is new" for name in present if name not in known and name not in before.damaged]


def _other_splits(path: Path, dataset: str, classes: Sequence[str]) -> dict[str, Any]:
    """The splits of an existing manifest of the same data set; a file that is something else is written over."""
    try:
        raw = read_json_object(path)
        same = (raw["format"], raw["dataset"], raw["classes"]) == (_FORMAT, dataset, list(classes))
        return dict(raw["splits"]) if same else {}
    except (DataError, ValueError, KeyError, TypeError):
        return {}


def _entry(item: ItemFacts, root: Path) -> dict[str, Any]:
    assert item.size is not None
    return {
        "image": relative_name(item.image, root),
        "mask": relative_name(item.mask, root),
        "image_sha256": item.image_sha256,
        "mask_sha256": item.mask_sha256,
        "image_bytes": item.image_state[0],
        "mask_bytes": item.mask_state[0],
        "image_state": item.image_state[1:],
        "mask_state": item.mask_state[1:],
        "size": list(item.size),
        "pixels": item.pixels,
        "ignored": item.ignored,
    }
