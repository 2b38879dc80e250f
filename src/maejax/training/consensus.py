"""Consensus of several processes: one requests to stop, save or halt, and all act at the same step."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.errors import Failed, Stopped
from maejax.training.mesh import gather, put_rows, put_same
from maejax.training.state import REQUESTS, STOP, Control


@contextmanager
def stop_requests():
    """Turn the first Ctrl-C or SIGTERM into a set event, so that the loop can save; a second Ctrl-C kills.

    A second SIGTERM does nothing: SLURM sends one when it wants the nodes, others when a process has ended or the time
    is up.
    """
    stop = threading.Event()

    def ask(number, _frame):
        stop.set()
        # Not the handler before: an early stop, see `commands/early_stop.py`, would take this very signal for its own.
        # Nor SIG_IGN, which processes that are started would inherit.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask) or signal.SIG_DFL  # None: a handler that is not Python's
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """The requests of this process, and `agreed`, bool [3]: the requests on which all processes agree.

    A request travels with the batch of the next step and comes back in the `Control` of that step. So it costs no
    message of its own, and all processes receive it at the same step. A process that is alone agrees at once.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._sent = mesh, None
        self._asked, self.agreed = np.zeros(REQUESTS, np.int32), np.zeros(REQUESTS, bool)

    def ask(self, request: int) -> None:
        """Request STOP, SAVE or HALT of all processes."""
        self._asked[request] = 1
        self.agreed[request] |= jax.process_count() == 1

    def clear(self, request: int) -> None:
        """Remove a request that was fulfilled."""
        self._asked[request], self.agreed[request] = 0, False

    def watch(self, items: Iterable[Any], stop: threading.Event) -> Iterator[Any]:
        """Yield `items`, of which all processes have the same number; before each, all exchange stops and failures.

        Raises Stopped if some process was asked to stop, what `items` raised, and Failed if another process's failed.
        """
        source, end = iter(items), False
        with closing(source) if hasattr(source, "close") else nullcontext():  # type: ignore[type-var]
            while not end:
                item, failure = None, None
                try:
                    item = next(source)
                except StopIteration:
                    end = True
                except Exception as error:  # whatever it is, the others must know
                    failure = error
                received = gather([stop.is_set(), failure is not None], self._mesh)
                if any(stopping for stopping, _ in received):
                    self.ask(STOP)
                    self.agreed |= self._asked > 0
                    raise Stopped
                if failure is not None:
                    raise failure
                if any(failed for _, failed in received):
                    raise Failed("the input of another process failed")
                if not end:
                    yield item

    def first_control(self) -> Control:
        """Return the `Control` that the first step gets."""
        nobody, no = np.zeros(REQUESTS, np.int32), np.zeros((), bool)
        return Control(*(put_same(value, self._mesh) for value in (nobody, no, no)))

    def requests(self) -> jax.Array:
        """Return the requests of all processes, int32 [devices, 3], for the next step."""
        asked = self._asked.tobytes()
        if self._sent is None or self._sent[0] != asked:
            rows = np.tile(self._asked, (len(self._mesh.local_devices), 1))
            self._sent = asked, put_rows(rows, self._mesh)
        return self._sent[1]
