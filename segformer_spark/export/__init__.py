"""A finished model as one file for other programs (`export`)."""
