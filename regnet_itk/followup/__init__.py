"""Lesions of two dates: found again through the transform, measured in the space of their own images."""
