"""`anomaly fit`: statistics of training data that scores need, every image once over all ranks."""

from __future__ import annotations

from segformer_spark.anomaly.features import FeatureStatistics, GaussianSums, PartSums, labelled_pixels, parts_of
from segformer_spark.anomaly.scores import ClassStatistics, StatisticsSums
from segformer_spark.data.sampler import rank_indices
from segformer_spark.evaluation.session import Session
from segformer_spark.ops.interpolation import enlarged_bands
from segformer_spark.run.console import progress


def fit_statistics(session: Session) -> ClassStatistics:
    """Highest logits of every class over the session's split, every image once over all ranks. Collective."""
    dataset, group = session.labelled(), session.group
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    sums = StatisticsSums(len(dataset.classes), group.device)
    items = session.logits(session.items(indices))
    with group.sharing_errors():
        for item, logits in progress(items, total=len(indices), label="fitting", visible=group.is_main):
            for _, band in enlarged_bands(logits, item.size):
                sums.add(band)
    return sums.finish(group.sum)


def fit_features(session: Session, pixels_per_image: int) -> FeatureStatistics:
    """Class means and covariance of the features over the split, then mean and deviation of the parts. Collective."""
    dataset, group = session.labelled(), session.group
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    gaussians: GaussianSums | None = None
    with group.sharing_errors():
        items = session.predictor.maps(session.items(indices))
        for item, _, features in progress(items, total=len(indices), label="features", visible=group.is_main):
            assert item.mask is not None
            if gaussians is None:
                gaussians = GaussianSums(len(dataset.classes), len(features), group.device)
            gaussians.add(*labelled_pixels(features, item.mask, item.index, pixels_per_image))
    # A rank without images has seen no features; it adds zeros of their number.
    widths = group.gather(0 if gaussians is None else gaussians.num_features)
    gaussians = gaussians or GaussianSums(len(dataset.classes), max(widths), group.device)
    fitted = gaussians.finish(group.sum)
    sums = PartSums(group.device)
    with group.sharing_errors():
        items = session.predictor.maps(session.items(indices))
        for _, logits, features in progress(items, total=len(indices), label="scales", visible=group.is_main):
            sums.add(parts_of(logits, features, fitted))
    return FeatureStatistics(*fitted, *sums.finish(group.sum))
