"""Fast forms of layers, each beside the plain one that it must equal."""
