"""The trained weights that ship with the package."""
