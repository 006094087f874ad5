"""Whether models that segment two images see the changes that human raters see."""
