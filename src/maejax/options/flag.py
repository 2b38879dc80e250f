"""The declaration of a flag: its smallest value, and whether it may change."""

from dataclasses import field
from typing import Any


def flag(default: Any, *, least: float | None = None, free: bool = False, written: bool = True) -> Any:
    """Declare the `least` value of a flag, and whether it may change within a run (`free`) and config.json has it.

    A free flag changes nothing that is computed. One that is not `written` belongs to this process and its machine.
    """
    return field(default=default, metadata={"least": least, "free": free, "written": written})
