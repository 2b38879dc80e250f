"""`maejax` and `python -m maejax`."""

import os
import signal
import sys


def main(*before: str) -> int:
    """Run the command line, with more words `before` the given ones.

    A signal ends a training with the code of a stop from here on, while Python imports; see `commands/early_stop.py`.
    """
    args = [*before, *sys.argv[1:]]
    if args[:1] == ["train"] or args[:2] == ["recipe", "run"]:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(75))
    from maejax.cli import main as run

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
