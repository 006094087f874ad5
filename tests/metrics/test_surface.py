"""Edges and distances against MONAI, boundary regions against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from segformer_spark.metrics.boundary import boundary_counts, boundary_region, boundary_width
from segformer_spark.metrics.surface import _distances, edge, match_edges

masks = st.tuples(st.integers(1, 17), st.integers(1, 15)).flatmap(
    lambda shape: st.tuples(*(arrays(np.uint8, shape, elements=st.integers(0, 1)),) * 2)
)


def blobs(seed: int, shape: tuple[int, int] = (61, 47)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first, second = (ndimage.gaussian_filter(rng.normal(size=shape), 5) > 0.02 for _ in range(2))
    return first.astype(np.uint8), (first ^ (second & (rng.random(shape) > 0.9))).astype(np.uint8)


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([1 - mask, mask]))[None].float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.5), (2.0, 0.7)])
def test_hd95_and_nsd_are_monais(seed: int, spacing: tuple[float, float]) -> None:
    prediction, truth = blobs(seed)
    found = match_edges(prediction, truth, (1.0, 2.0), spacing)
    given = {"spacing": list(spacing)}
    hd95 = compute_hausdorff_distance(one_hot(prediction), one_hot(truth), percentile=95, **given)
    assert found.hd95 == pytest.approx(float(hd95[0, 0]), rel=1e-5)
    for tolerance, (first, second) in zip((1.0, 2.0), found.matched, strict=True):
        nsd = compute_surface_dice(one_hot(prediction), one_hot(truth), [tolerance], **given)
        assert (first + second) / (found.predicted + found.true) == pytest.approx(float(nsd[0, 0]), rel=1e-5)


@given(masks)
@settings(max_examples=100)
def test_edges_and_regions_are_those_of_scipys_erosion(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for mask in pair:
        inner = ndimage.binary_erosion(mask, border_value=0)
        assert np.array_equal(edge(mask), mask.astype(bool) & ~inner)
        for width in (1, 3):
            eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
            assert np.array_equal(boundary_region(mask, width), mask & ~eroded)
    prediction, truth = pair
    assert boundary_counts(prediction, truth, 100) == (prediction.sum(), truth.sum(), (prediction & truth).sum())


@given(masks)
@settings(max_examples=100)
def test_distances_are_those_of_all_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    found = match_edges(prediction, truth, (1.0, 2.5))
    first, second = np.argwhere(edge(prediction)), np.argwhere(edge(truth))
    assert (found.predicted, found.true) == (
        (len(first), len(second)) if len(first) and len(second) else (found.predicted, found.true)
    )
    if not len(first) or not len(second):
        assert np.isnan(found.hd95)
        assert found.matched == ((0, 0), (0, 0))
        return
    between = np.linalg.norm(first[:, None] - second[None], axis=-1)
    one, other = between.min(1), between.min(0)
    assert found.hd95 == pytest.approx(max(np.quantile(one, 0.95), np.quantile(other, 0.95)), rel=1e-14)
    assert found.matched == tuple(((one <= t).sum(), (other <= t).sum()) for t in (1.0, 2.5))


def test_distances_are_exact_wherever_they_lie_in_memory() -> None:
    """OpenCV's float32 roots differ in their last bit with the place of the array."""
    rng = np.random.default_rng(0)
    for shape in ((97, 131), (1000, 1040), (1700, 40)):
        edges = rng.random(shape) > 0.999
        edges[shape[0] // 2, shape[1] // 2] = True
        exact = ndimage.distance_transform_edt(~edges)
        assert np.array_equal(_distances(edges, (1.0, 1.0)), exact)
        assert np.array_equal(_distances(edges, (0.25, 0.25)), 0.25 * exact)


def test_nothing_is_known_beside_pixels_without_a_label() -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    void = np.zeros_like(truth)
    void[:, 14:17] = 1
    truth[void == 1] = 0
    prediction = truth.copy()
    found = match_edges(prediction, truth, (1.0,), void=void)
    assert found.matched == ((found.predicted, found.true),)
    assert found.predicted == edge(truth)[:, :13].sum()


def test_the_papers_width() -> None:
    assert boundary_width((480, 640)) == 16
    assert boundary_width((1, 1)) == 1
