"""Names of the anomaly scores, and what each needs. Imports no torch, for the command line."""

from __future__ import annotations

PLAIN = ("msp", "max_logit", "energy", "entropy", "margin")
"""Scores of logits alone."""

LOGIT_STATISTICS = ("standardized_max_logit",)
"""Scores of logits that need statistics of training data."""

FEATURES = ("mahalanobis", "heat", "heat_hybrid")
"""Scores of features that need statistics of training data."""

FITTED = (*LOGIT_STATISTICS, *FEATURES)
"""Scores that `anomaly fit` prepares."""

METHODS = (*PLAIN, *FITTED)
