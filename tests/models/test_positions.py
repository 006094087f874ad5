from __future__ import annotations

import pytest
import torch

from segformer_spark.errors import CheckpointError
from segformer_spark.models.positions import fit_positions, resize_positions


def test_resizing_positions_keeps_constants_and_extra_tokens() -> None:
    positions = torch.cat([torch.full((1, 1, 2), 7.0), torch.full((1, 16, 2), 3.0)], 1)
    resized = resize_positions(positions, 1 + 25, 1)
    assert resized.shape == (1, 26, 2)
    torch.testing.assert_close(resized[:, 0], positions[:, 0])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 25, 2), 3.0))
    with pytest.raises(CheckpointError, match="no square"):
        resize_positions(positions, 1 + 24, 1)


def test_only_positions_of_another_number_are_fitted() -> None:
    state = {"a.pos_embed": torch.ones(1, 5, 2), "a.weight": torch.ones(1, 5, 2), "b.pos_embed": torch.ones(1, 4, 2)}
    target = {
        "a.cls_token": torch.ones(1, 1, 2),
        "a.pos_embed": torch.ones(1, 10, 2),
        "a.weight": torch.ones(1, 10, 2),
        "b.pos_embed": torch.ones(1, 4, 2),
    }
    fitted, resized = fit_positions(state, target)
    assert resized == ["a.pos_embed 2 x 2 to 3 x 3"]
    assert {name: value.shape[1] for name, value in fitted.items()} == {
        "a.pos_embed": 10,
        "a.weight": 5,
        "b.pos_embed": 4,
    }
