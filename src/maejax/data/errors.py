"""What goes wrong with data, for callers to tell apart."""


class DataError(ValueError):
    """The user's input is wrong; the message is one sentence that names it and says what to do."""


class FetchError(OSError):
    """A shard cannot be had, for good; the message says why and holds no secret."""
