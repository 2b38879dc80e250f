"""The real command line with slower steps and validations, so that a test can meet it at a chosen moment.

It also notes a checksum of every batch: one a line, in batches.txt. With NOTES it notes which samples and masks this
process gave to every step, in a file for each process; with STOP_AT it is told to stop before a step. SLOW, as in
1:input:.3, makes process 1 slower by so many seconds a step, while it waits for its `input`, or in the `rest`. With
NO_ROOM the disk of process 1 has no room at the save of a step, with FULL_DISK it fills up in that save.
"""

import json
import os
import resource
import signal
import sys
import time
import zlib
from pathlib import Path
from unittest import mock

import jax

from maejax.training import checkpoint, loop, mesh, state

SECONDS = 0.03
WHO, WHAT, HOW_MUCH = os.environ.get("SLOW", "::").split(":")
put_rows, make_step, next_rows = loop.put_rows, state.make_step, loop.Reader.next


def slow_batch(rows, mesh):
    with open("batches.txt", "a") as file:
        file.write(f"{zlib.crc32(rows.images.tobytes(), zlib.crc32(rows.index.tobytes()))}\n")
    time.sleep(SECONDS)
    slow_down("rest")
    return put_rows(rows, mesh)


def slow_down(what):
    if what == WHAT and jax.process_index() == int(WHO):
        time.sleep(float(HOW_MUCH))


def slow_input(reader):
    slow_down("input")
    return next_rows(reader)


def noting_step(*given, draw, **options):
    """Make a step that also notes what it was given."""
    step_fn, masks = make_step(*given, draw=draw, **options), None

    def step(flat, batch, *more):
        nonlocal masks
        state = flat.state
        masks = masks or jax.jit(lambda *given: draw(*given).order, out_shardings=batch.images.sharding)
        number = int(jax.device_get(state.step))
        order = {shard.index[0].start or 0: shard.data for shard in masks(batch, state.step).addressable_shards}
        index = {shard.index[0].start or 0: shard.data for shard in batch.index.addressable_shards}
        note = {"step": number, **{
            name: [row for start in sorted(parts) for row in jax.device_get(parts[start]).tolist()]
            for name, parts in (("index", index), ("order", order))
        }}  # fmt: skip
        with open(f"{os.environ['NOTES']}-{jax.process_index()}.jsonl", "a") as file:
            file.write(json.dumps(note) + "\n")
        if number == int(os.environ.get("STOP_AT", "-1")) and jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(flat, batch, *more)

    return step


def slow_validation(validate):
    def slow(self, state, step, watch):
        marker = Path("validating")
        marker.touch()
        time.sleep(10 * SECONDS)
        try:
            return validate(self, state, step, watch)
        finally:
            marker.unlink(missing_ok=True)

    return slow


def failing_save(save):
    def fail(self, state, step, data=None):
        if jax.process_index() != 1 or step != int(os.environ.get("NO_ROOM") or os.environ["FULL_DISK"]):
            return save(self, state, step, data)
        if "NO_ROOM" in os.environ:
            with mock.patch.object(checkpoint.Checkpoints, "_room", lambda self: 0):
                return save(self, state, step, data)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            save(self, state, step, data)
            self.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    return fail


if __name__ == "__main__":
    mesh.SMALL = 64  # so that FSDP splits a tiny model as well
    loop.put_rows, loop.Reader.next = slow_batch, slow_input
    if {"NO_ROOM", "FULL_DISK"} & set(os.environ):
        checkpoint.PATIENCE = 20
        checkpoint.Checkpoints.save = failing_save(checkpoint.Checkpoints.save)
    if "NOTES" in os.environ:
        state.make_step = noting_step
    from maejax.cli import main
    from maejax.tasks import validation

    validation.Validation.__call__ = slow_validation(validation.Validation.__call__)
    sys.exit(main(sys.argv[1:]))
