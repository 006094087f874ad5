"""Cityscapes, fine annotations: 19 classes, 2048 x 1024 (Cordts et al. 2016).

<root>/leftImg8bit/{train,val,test}/<city>/X_leftImg8bit.png
<root>/gtFine/{train,val,test}/<city>/X_gtFine_labelIds.png      ids 0..33 (-1 is stored as 255)
<root>/gtFine/.../X_gtFine_labelTrainIds.png                     0..18 and 255, taken where labelIds are missing
"""

from __future__ import annotations

from pathlib import Path

from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo, Mask
from segformer_spark.data.decode import ImageFile
from segformer_spark.data.files import visible_files
from segformer_spark.data.masks import decode_index_mask
from segformer_spark.data.readers.pairs import PairDataset, log_masks_without_image, refuse_missing_files
from segformer_spark.data.suffixes import PNG

_TABLE: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CITYSCAPES_CLASSES = ClassInfo(
    tuple(name for _, name, _ in _TABLE), tuple(color for _, _, color in _TABLE), background=None
)

_ALL_IDS = dict.fromkeys((*range(34), 255), IGNORE_INDEX)
_LABEL_IDS = _ALL_IDS | {label: position for position, (label, _, _) in enumerate(_TABLE)}
_TRAIN_IDS = {255: IGNORE_INDEX, **{position: position for position in range(len(_TABLE))}}
_IMAGE, _IDS, _TRAIN = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds"


class CityscapesDataset(PairDataset):
    """`train`, `val` or `test`, in the order of cities and names."""

    classes = CITYSCAPES_CLASSES
    labels = _LABEL_IDS

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """List the files.

        Raises:
            DataError: no such split, or an image without its mask.
        """
        images = visible_files(root / "leftImg8bit" / split, PNG, "images")
        masks = root / "gtFine" / split
        kind = _TRAIN if any(masks.glob(f"*/*{_TRAIN}.png")) and not any(masks.glob(f"*/*{_IDS}.png")) else _IDS
        super().__init__(
            [(image, masks / image.parent.name / f"{image.stem.removesuffix(_IMAGE)}{kind}.png") for image in images]
        )
        if check_files:
            refuse_missing_files(self.pairs)
            log_masks_without_image(masks, f"{kind}.png", self.pairs)

    def decode_mask(self, file: ImageFile) -> Mask:
        """Label ids, or train ids, by the file's name."""
        return decode_index_mask(file, _TRAIN_IDS if file.path.stem.endswith(_TRAIN) else _LABEL_IDS, self.decoding)

    def sample_id(self, index: int) -> str:
        return super().sample_id(index).removesuffix(_IMAGE)
