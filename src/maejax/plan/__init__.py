"""A plan of a training run on devices that are not here: compiled for them, counted, and timed by a model."""
