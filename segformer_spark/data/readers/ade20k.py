"""ADE20K, scene parsing benchmark of 2016: 150 classes (Zhou et al. 2017).

<root>/images/{training,validation}/ADE_*.{jpg,png}         <root> is ADEChallengeData2016
<root>/annotations/{training,validation}/ADE_*.png          0 is unlabelled, k is class k - 1
"""

from __future__ import annotations

import colorsys
from pathlib import Path

from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo
from segformer_spark.data.files import visible_files
from segformer_spark.data.readers.pairs import PairDataset, log_masks_without_image, refuse_missing_files, relative_id
from segformer_spark.data.suffixes import IMAGES

# The first name of each class in the benchmark's objectInfo150.txt.
_NAMES = """
wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth; door; table;
mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug; field; armchair; seat;
fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column; signboard; chest of drawers; counter;
sand; sink; skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway; case; pool table; pillow;
screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; book; hill; bench; countertop;
stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel; bus; towel; light; truck; tower;
chandelier; awning; streetlight; booth; television receiver; airplane; dirt track; apparel; pole; land; bannister;
escalator; ottoman; bottle; buffet; poster; stage; van; ship; fountain; conveyer belt; canopy; washer; plaything;
swimming pool; stool; barrel; basket; waterfall; tent; bag; minibike; cradle; oven; ball; food; step; tank; trade name;
microwave; pot; animal; bicycle; lake; dishwasher; screen; blanket; sculpture; hood; sconce; vase; traffic light; tray;
ashcan; fan; pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass; clock; flag
"""


def _colors(number: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours for pictures; the data set itself has none."""
    golden = 0.618034
    rgb = (colorsys.hsv_to_rgb(i * golden % 1, 0.5 + i % 3 / 4, 0.95 - i % 4 / 6) for i in range(number))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)


_CLASS_NAMES = tuple(" ".join(name.split()) for name in _NAMES.split(";"))
ADE20K_CLASSES = ClassInfo(_CLASS_NAMES, _colors(len(_CLASS_NAMES)), background=None)
_FOLDERS = {"train": "training", "val": "validation"}


class Ade20kDataset(PairDataset):
    """`train` or `val` (also by their folders' names), in the order of the file names."""

    classes = ADE20K_CLASSES
    labels = {0: IGNORE_INDEX, **{k: k - 1 for k in range(1, len(_CLASS_NAMES) + 1)}}  # noqa: RUF012 - not changed

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """List the files.

        Raises:
            DataError: no such split, or an image without its mask.
        """
        folder = _FOLDERS.get(split, split)
        self.images, masks = root / "images" / folder, root / "annotations" / folder
        images = visible_files(self.images, IMAGES, "images")
        super().__init__([(image, masks / image.relative_to(self.images).with_suffix(".png")) for image in images])
        if check_files:
            refuse_missing_files(self.pairs)
            log_masks_without_image(masks, ".png", self.pairs)

    def sample_id(self, index: int) -> str:
        return relative_id(self.pairs[index][0], self.images)
