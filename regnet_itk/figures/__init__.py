"""Slices of images drawn, and the picture of one registration."""
