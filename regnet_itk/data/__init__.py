"""Grids, images, fields, landmarks: numbers with a place in physical space."""
