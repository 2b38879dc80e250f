"""What goes wrong around a run, for the command line to tell apart; importing this does not load JAX."""


class RunError(ValueError):
    """The run directory does not fit what was asked for; the message says what to do."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is kept."""
