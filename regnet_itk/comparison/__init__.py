"""Methods compared on pairs of images."""
