"""Shared by the tests of the training machine."""

import resource
from contextlib import contextmanager

import pytest


@pytest.fixture
def full_disk():
    """Give a context in which no file may grow beyond a few bytes."""

    @contextmanager
    def full():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full
