"""A stop before the first step of a training: nothing is to be saved, so the process ends with the code of a stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from maejax.commands.command import STOPPED

GRACE = 10.0  # seconds to tidy up; the compiler of a device does not look at signals


@contextmanager
def early_stop() -> Iterator[None]:
    """End the process with exit code 75 at SIGTERM or Ctrl-C while the block runs, until the loop handles them.

    A library may swallow the exception of a Ctrl-C, so a thread looks after it. Does nothing outside the main thread,
    where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        sys.exit(_say())

    def watch():
        """End the process if the main thread has not done so some time after the signal."""
        while number := os.read(reader, 1):
            if number[0] in before and signal.getsignal(number[0]) is stop:
                time.sleep(GRACE)
                if signal.getsignal(number[0]) is stop:
                    os._exit(_say())
        os.close(reader)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    caught = [signal.SIGTERM] + [signal.SIGINT] * (signal.getsignal(signal.SIGINT) != signal.SIG_IGN)
    before = {number: signal.signal(number, stop) for number in caught}
    wakeup = signal.set_wakeup_fd(writer)
    threading.Thread(target=watch, name="maejax-stop", daemon=True).start()
    try:
        yield
    except SystemExit as error:
        if error.code == STOPPED:
            os._exit(STOPPED)  # a tidy end would wait for the compiler's threads
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's
        os.close(writer)


def _say() -> int:
    sys.stdout.flush()  # for `os._exit` does not
    print("stopped; start the same command again to go on", file=sys.stderr, flush=True)
    return STOPPED
