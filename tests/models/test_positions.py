from __future__ import annotations

import pytest
import torch

from segformer_spark.errors import CheckpointError
from segformer_spark.models.positions import Grid, fit_positions, resize_grid


def positions(count: int, extra: int = 0) -> dict[str, torch.Tensor]:
    """So many random positions after `extra` tokens."""
    values = torch.randn(1, extra + count, 2, generator=torch.Generator().manual_seed(count))
    return {"pos_embed": values, **({"cls_token": torch.zeros(1, extra, 2)} if extra else {})}


def test_resizing_positions_keeps_constants_and_extra_tokens() -> None:
    state = {"pos_embed": torch.cat([torch.full((1, 1, 2), 7.0), torch.full((1, 16, 2), 3.0)], 1)}
    fitted, _ = fit_positions(state, positions(25, extra=1))
    resized = fitted["pos_embed"]
    assert resized.shape == (1, 26, 2)
    torch.testing.assert_close(resized[:, 0], state["pos_embed"][:, 0])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 25, 2), 3.0))
    with pytest.raises(CheckpointError, match="no square"):
        fit_positions(state, positions(24, extra=1))


@pytest.mark.parametrize(("before", "after"), [((4, 4), (2, 6)), ((2, 8), (4, 4)), ((2, 8), (6, 2))])
def test_grids_that_are_no_squares_are_resized_side_by_side(before: Grid, after: Grid) -> None:
    state, target = positions(16), positions(after[0] * after[1])
    if after == (4, 4):  # as many, in another arrangement
        target = {"pos_embed": torch.zeros(1, 16, 2)}
    fitted, resized = fit_positions(state, target, before, after)
    torch.testing.assert_close(fitted["pos_embed"], resize_grid(state["pos_embed"], before, after))
    assert resized == [f"pos_embed {before[0]} x {before[1]} to {after[0]} x {after[1]}"]


def test_a_grid_that_the_positions_do_not_fill_is_refused() -> None:
    with pytest.raises(CheckpointError, match="16 positions is not 3 x 6"):
        fit_positions(positions(16), positions(25), (3, 6), (5, 5))


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
