"""How one process asks, and all act at the same step: to stop, to save, to halt."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.errors import Failed, Stopped
from maejax.training.mesh import gather, put_rows, put_same
from maejax.training.state import STOP, WISHES, Control

Item = TypeVar("Item")


@contextmanager
def stop_requests():
    """Turn the first Ctrl-C or SIGTERM into a set event, so that the loop can save; a second Ctrl-C kills."""
    stop = threading.Event()

    def ask(number, _frame):
        stop.set()
        signal.signal(number, before[number])

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
    """What single processes ask for, and what is thereby agreed on by all.

    A wish travels with the next step's batch and comes back with what the step tells every process, so it costs no
    message of its own, and all hear it at the same step. A process that is alone agrees with itself at once.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._alone = jax.process_count() == 1
        self._asked, self._agreed = np.zeros(WISHES, np.int32), np.zeros(WISHES, bool)
        self._sent: tuple[bytes, jax.Array] | None = None

    def ask(self, wish: int) -> None:
        """Ask all processes for STOP, SAVE or HALT."""
        self._asked[wish] = 1
        if self._alone:
            self._agreed[wish] = True

    def hear(self, asked: np.ndarray) -> None:
        """Take note of what a step brought."""
        self._agreed |= asked > 0

    def has(self, wish: int) -> bool:
        """Tell whether all agree on a wish."""
        return bool(self._agreed[wish])

    def any(self) -> bool:
        """Tell whether all agree on some wish."""
        return bool(self._agreed.any())

    def clear(self, wish: int) -> None:
        """Forget a wish that was fulfilled."""
        self._asked[wish], self._agreed[wish] = 0, False

    def watch(self, items: Iterable[Item], stop: threading.Event) -> Iterator[Item]:
        """Yield `items`, of which every process has as many; before each, hear of a stop or a failure of any process.

        Raises:
            Stopped: some process was asked to stop.
            Failed: the items of another process failed.
            Exception: what this process's `items` raised.

        """
        source, end = iter(items), False
        with closing(source) if hasattr(source, "close") else nullcontext():  # type: ignore[type-var]
            while not end:
                item, failure = None, None
                try:
                    item = next(source)
                except StopIteration:
                    end = True
                except Exception as error:  # whatever it is, the others must hear of it
                    failure = error
                heard = gather([stop.is_set(), failure is not None], self._mesh)
                if any(stopping for stopping, _ in heard):
                    self.ask(STOP)
                    self.hear(self._asked)
                    raise Stopped
                if failure is not None:
                    raise failure
                if any(failed for _, failed in heard):
                    raise Failed("the input of another process failed")
                if not end:
                    yield item  # type: ignore[misc]

    def first_control(self) -> Control:
        """Give what the first step takes for the control of a step before it."""
        nobody, no = np.zeros(WISHES, np.int32), np.zeros((), bool)
        return Control(*(put_same(value, self._mesh) for value in (nobody, no, no)))

    def asks(self) -> jax.Array:
        """Give the wishes of all processes, [devices, 3] int32, to be sent with a step."""
        key = self._asked.tobytes()
        if self._sent is None or self._sent[0] != key:
            rows = np.tile(self._asked, (len(self._mesh.local_devices), 1))
            self._sent = key, put_rows(rows, self._mesh)
        return self._sent[1]
