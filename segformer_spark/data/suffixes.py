"""Suffixes of image files, in lower case."""

from __future__ import annotations

JPEG = (".jpg", ".jpeg")
PNG = (".png",)
IMAGES = (*JPEG, *PNG, ".bmp", ".tif", ".tiff", ".webp")
"""All that can be decoded."""
