"""The real command line with slower steps and validations, so that a test can meet it at a chosen moment.

It also notes a checksum of every batch: one a line, in batches.txt.
"""

import sys
import time
import zlib
from pathlib import Path

from maejax.cli import main
from maejax.tasks import validation
from maejax.training import loop, mesh

SECONDS = 0.03
put_batch, validate = loop.put_batch, validation.Validation.__call__


def slow_batch(rows, mesh):
    with open("batches.txt", "a") as file:
        file.write(f"{zlib.crc32(rows['images'].tobytes(), zlib.crc32(rows['index'].tobytes()))}\n")
    time.sleep(SECONDS)
    return put_batch(rows, mesh)


def slow_validation(self, state, step):
    marker = Path("validating")
    marker.touch()
    time.sleep(10 * SECONDS)
    metrics = validate(self, state, step)
    marker.unlink(missing_ok=True)
    return metrics


if __name__ == "__main__":
    mesh.SMALL = 64  # so that FSDP splits a tiny model as well
    loop.put_batch, validation.Validation.__call__ = slow_batch, slow_validation
    sys.exit(main(sys.argv[1:]))
