"""Code of the user as a part of a model: a decoder or a target that is stored by its name alone."""

from collections.abc import Callable
from typing import Any


def name_code(code: Callable[..., Any] | str) -> str:
    """Return the name by which a class or function is stored, MODULE:NAME."""
    if isinstance(code, str):
        return code
    return f"{code.__module__}:{getattr(code, '__qualname__', type(code).__name__)}"


def given_code(code: Callable[..., Any] | str | None, what: str) -> Callable[..., Any]:
    """Return the code of a decoder or target; raises ValueError if it is only the name that a file has of it."""
    if callable(code):
        return code
    raise ValueError(f"the {what} of this model is code of another program, {code}: give {what}= to maejax.load")
