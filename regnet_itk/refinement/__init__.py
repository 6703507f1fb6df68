"""A field improved on the pair itself."""
