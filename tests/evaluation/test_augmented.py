"""Passes of test-time augmentation: what a pass shows, undone, lies on the image again."""

from __future__ import annotations

import pytest
import torch

from segformer_spark.errors import UserError
from segformer_spark.evaluation.augmented import TTA, passes_of


@pytest.mark.parametrize("tta", [*TTA, "turns+hflip", "flips+scales", "hflip+turns+scales"])
def test_passes_are_undone(tta: str) -> None:
    image = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).view(2, 3, 8, 12)
    for one in passes_of(tta):
        shown = one.show(image)
        back = one.undo(shown)
        height, width = round(8 * one.scale), round(12 * one.scale)
        assert back.shape[-2:] == (height, width)
        if one.scale == 1:
            assert torch.equal(back, image)
            if one.axes or one.turns:
                assert shown.shape != image.shape or not torch.equal(shown, image)


def test_numbers_of_passes() -> None:
    assert [len(passes_of(tta)) for tta in ("none", "hflip", "flips", "turns", "scales", "turns+hflip")] == [
        *(1, 2, 4, 4, 3, 8)
    ]
    assert len(set(passes_of("flips+turns+scales"))) == len(passes_of("flips+turns+scales"))


@pytest.mark.parametrize("tta", ["rotate", "hflip+hflip", "hflip+flips", "", "none+hflip"])
def test_other_names_are_refused(tta: str) -> None:
    with pytest.raises(UserError, match="choose among none, hflip"):
        passes_of(tta)
