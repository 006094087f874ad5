"""One file per data set; data/registry.py names them."""
