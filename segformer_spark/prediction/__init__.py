"""Masks for images without labels (`predict`)."""
