"""Storage is tested with the shards and the server of the data room's tests."""

from tests.data.conftest import *  # noqa: F403
