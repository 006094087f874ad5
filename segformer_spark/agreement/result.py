"""What a study of agreement finds for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segformer_spark.agreement.correlation import Correlation, Maximum
from segformer_spark.agreement.objects import AreaChange


@dataclass(frozen=True)
class ModelAgreement:
    """What one model makes of the pairs.

    Attributes:
        changes: of each item, in order.
        by_threshold: {kind: correlation at each of THRESHOLDS}, over the items whose change is known.
        maxima: {kind: the highest of them}.
        num_items: items whose change is known.
    """

    name: str
    variant: str
    parameters: int
    changes: Sequence[AreaChange]
    by_threshold: Mapping[str, Sequence[Correlation]]
    maxima: Mapping[str, Maximum]
    num_items: int
