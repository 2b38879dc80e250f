"""A page on which people play with a model: what `maejax serve` shows."""
