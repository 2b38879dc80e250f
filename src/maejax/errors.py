"""Exceptions of the package: wrong input ends a command with exit code 2, a failure with 1.

Importing this loads nothing.
"""

import re
import shlex
import sys

CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")  # all but tab and new line


def install(extra: str) -> str:
    """Return the command that adds an extra of maejax to this Python, whether it runs from a clone or a wheel."""
    return f"{shlex.quote(sys.executable)} -m pip install 'maejax[{extra}]'"


def printable(text: str) -> str:
    """Escape control characters, which names of files and classes and the words of a server may hold."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class InputError(ValueError):
    """The user's input is wrong; the message is one sentence that names it and says what to do."""


class WeightsError(InputError):
    """A file of weights cannot be used; the message names the file and every tensor that is wrong."""


class Failed(RuntimeError):
    """Something failed on the way; the message says why and what is kept."""


class FetchError(OSError):
    """An address cannot be read; retrying will not help. The message holds no secret."""


class FormatError(ValueError):
    """A tar, table or label file is not what its name says."""


class UnreadableImage(ValueError):
    """An image cannot be decoded; the message says why."""


class Stopped(Exception):
    """A thread or process was asked to stop."""
