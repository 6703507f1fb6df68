"""Measures of one registration, and statistics of several."""
