"""Which mask belongs to which image, in a folder as people keep them.

A mask is a file below a folder named masks, labels, annotations, ... or one whose name ends in _mask, _label, ...;
where neither exists, of two files of one name the PNG is the mask of the other. A mask belongs to the image whose path
is the same without these words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.data.files import composed, visible_files
from segformer_spark.data.suffixes import IMAGES, PNG
from segformer_spark.errors import DataError

MASK_FOLDERS = (
    *("mask", "masks", "label", "labels", "labelids", "annotation", "annotations", "annot", "gt", "groundtruth"),
    *("ground_truth", "seg", "segmentation", "segmentations", "segmentationclass", "target", "targets", "trimaps"),
)
IMAGE_FOLDERS = ("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "rgb", "input", "inputs")
_SAYING = frozenset((*MASK_FOLDERS, *IMAGE_FOLDERS))
_MASK_WORDS = r"masks?|labels?|label_?ids|gt|ground_?truth|seg|segmentation|annotations?|layer"
_MASK_NAME = re.compile(rf"^(?P<stem>.+)[-_. ](?:{_MASK_WORDS})$|^(?:mask|label|gt)[-_. ](?P<rest>.+)$", re.IGNORECASE)
_IMAGE_NAME = re.compile(
    r"^(?P<stem>.+)[-_. ](?:img|image|rgb|photo)$|^(?:img|image)[-_. ](?P<rest>.+)$", re.IGNORECASE
)
_NAMED = 3


@dataclass(frozen=True)
class Pairing:
    """Images and masks of a folder.

    Attributes:
        pairs: (image, mask) in the order of their names.
        names: what image and mask have in common, with folders; one per pair, unique.
        without_mask, without_image: files without a partner.
    """

    pairs: Sequence[tuple[Path, Path]]
    names: Sequence[str]
    without_mask: Sequence[Path] = ()
    without_image: Sequence[Path] = ()


def find_pairs(root: Path) -> Pairing:
    """Images and masks below a folder.

    Raises:
        DataError: no such folder, nothing in it, or two masks for one image, two images for one mask.
    """
    files = visible_files(root, IMAGES, "images")
    masks = [path for path in files if _is_mask(path.relative_to(root))]
    if masks:
        chosen = set(masks)
        images = [path for path in files if path not in chosen]
    else:
        images, masks = _by_suffix(files)
    whole = {_whole_name(path, root) for path in images}
    by_mask = _by_name(masks, root, "masks for one image", _MASK_NAME, whole)
    by_image = _by_name(images, root, "images for one mask", _IMAGE_NAME, by_mask.keys())
    _join_by_stem(by_image, by_mask)
    names = sorted(by_image.keys() & by_mask.keys())
    return Pairing(
        [(by_image[name], by_mask[name]) for name in names],
        names,
        [by_image[name] for name in sorted(by_image.keys() - by_mask.keys())],
        [by_mask[name] for name in sorted(by_mask.keys() - by_image.keys())],
    )


def refuse_without_partner(pairing: Pairing, root: Path, fix: str = "") -> None:
    """Raise DataError naming images without a mask and masks without an image."""
    kinds = {"images without a mask": pairing.without_mask, "masks without an image": pairing.without_image}
    found = [f"{len(paths)} {kind}: {listed(paths, root)}" for kind, paths in kinds.items() if paths]
    if found:
        raise DataError(f"{root}: {'; '.join(found)}", fix)


def listed(paths: Sequence[Path], root: Path) -> str:
    """The first few names below `root`."""
    shown = ", ".join(str(path.relative_to(root)) for path in paths[:_NAMED])
    return shown + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")


def _is_mask(path: Path) -> bool:
    in_folder = any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])
    in_images = any(part.lower() in IMAGE_FOLDERS for part in path.parts[:-1])
    return in_folder or (not in_images and _MASK_NAME.match(path.stem) is not None)


def _by_suffix(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Of files of one name the PNG is the mask, if the other is no PNG."""
    groups: dict[Path, list[Path]] = {}
    for path in files:
        groups.setdefault(path.with_suffix(""), []).append(path)
    images, masks = [], []
    for group in groups.values():
        lossless = [path for path in group if path.suffix.lower() in PNG]
        if len(group) == 2 and len(lossless) == 1:
            masks += lossless
            images += [path for path in group if path not in lossless]
        else:
            images += group
    return images, masks


def _by_name(
    paths: Sequence[Path], root: Path, twice: str, pattern: re.Pattern[str], others: Collection[str]
) -> dict[str, Path]:
    """{name: path}; names are whole where the other side has them, else without the words of the pattern."""
    found: dict[str, Path] = {}
    for path in paths:
        name = _whole_name(path, root)
        if name not in others and (match := pattern.match(path.stem)):
            name = name.removesuffix(composed(path.stem)) + composed(match["stem"] or match["rest"])
        if name in found:
            raise DataError(
                f"two {twice}: {found[name].relative_to(root)} and {path.relative_to(root)} in {root}",
                "Remove one of them, or rename it.",
            )
        found[name] = path
    return found


def _whole_name(path: Path, root: Path) -> str:
    """The path below `root` without suffix and without folders that say what is in them."""
    folders = [part for part in path.relative_to(root).parts[:-1] if part.lower() not in _SAYING]
    return composed("/".join([*folders, path.stem]))


def _join_by_stem(images: dict[str, Path], masks: Mapping[str, Path]) -> None:
    """Where folders differ (photos/day1/a.jpg and masks/a.png), names that occur once on each side belong together."""
    alone_images = _unique_stems(images.keys() - masks.keys())
    alone_masks = _unique_stems(masks.keys() - images.keys())
    for stem in sorted(alone_images.keys() & alone_masks.keys()):
        images[alone_masks[stem]] = images.pop(alone_images[stem])


def _unique_stems(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("/")[2], []).append(name)
    return {stem: own[0] for stem, own in found.items() if len(own) == 1}
