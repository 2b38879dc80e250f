"""A stop before the first step of a training: nothing is to be saved, so the process ends with the code of a stop."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from maejax.commands.command import STOPPED


@contextmanager
def early_stop() -> Iterator[None]:
    """End the process with exit code 75 at SIGTERM or Ctrl-C while the block runs, until the loop handles them.

    A thread ends it: the compiler of a device does not look at signals, and an exception that a signal raises is lost
    in a callback or an import. Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        """Leave the signal to the thread."""

    def watch():
        """End the process at a signal that no loop handles."""
        while number := os.read(reader, 1):
            if number[0] in before and signal.getsignal(number[0]) is stop:
                with suppress(RuntimeError):  # the main thread is writing
                    sys.stdout.flush()  # for `os._exit` does not
                print("stopped; start the same command again to go on", file=sys.stderr, flush=True)
                os._exit(STOPPED)
        os.close(reader)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    caught = [signal.SIGTERM] + [signal.SIGINT] * (signal.getsignal(signal.SIGINT) != signal.SIG_IGN)
    before = {number: signal.signal(number, stop) for number in caught}
    wakeup = signal.set_wakeup_fd(writer)
    threading.Thread(target=watch, name="maejax-stop", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's
        os.close(writer)
