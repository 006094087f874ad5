"""Estimates of a step's time on a GPU, from every operation that it dispatches on fake tensors."""
