"""Comparisons and ablations: many runs of one study, their tables, statistics, figures and report."""
