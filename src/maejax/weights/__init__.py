"""Weights in the layouts of other codes: one file per layout."""
