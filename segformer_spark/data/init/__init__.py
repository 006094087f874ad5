"""From a folder of images and masks, or polygons, to a configuration that trains (`data init`)."""
