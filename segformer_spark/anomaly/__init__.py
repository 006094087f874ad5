"""Pixels that belong to no class: scores from a model's logits, and how well they detect anomalies."""
