"""The processes of a run by name: who has not come yet, and who went before the end. JAX's own service names nobody."""

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from maejax.errors import Failed, InputError

TELL_SECONDS = 30.0  # between two lines about those that have not come
GRACE_SECONDS = 20.0  # in which a process may notice by itself that another one is gone; then it ends
HELLO_SECONDS = 10.0

_log = logging.getLogger("maejax.training")


class Line:
    """Whole lines of JSON over a connection."""

    def __init__(self, connection: socket.socket):
        self._connection, self._file = connection, connection.makefile("rb")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # a machine that is gone says nothing; so it is asked
            for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, message: dict[str, Any]) -> None:
        """Send, to whoever is still there."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Wait for a message; None where the other end is gone, does not answer, or speaks otherwise."""
        try:
            self._connection.settimeout(seconds)
            message = json.loads(self._file.readline(1 << 20))
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._connection.close()


class Peers:
    """The other processes: `names` of all, in order, and `gone`, those that ended before this one, with how."""

    def __init__(self, process: int, hosts: list[str], lines: dict[int, Line]):
        self.names = [f"process {i} ({host})" for i, host in enumerate(hosts)]
        self.gone: dict[int, str] = {}
        self._process, self._lines = process, lines
        self._news = threading.Event()
        for other, line in lines.items():
            threading.Thread(target=self._listen, args=(other, line), daemon=True).start()

    def say_goodbye(self, code: int) -> None:
        """Tell the others that this process ends by itself."""
        for line in self._lines.values():
            line.send({"bye": code, "process": self._process})

    def lost(self, seconds: float = 0.0) -> str:
        """Name those that are gone, "" if none; waits so long for news."""
        self._news.wait(seconds)
        return " and ".join(f"{self.names[i]} {how}" for i, how in sorted(self.gone.items()))

    def _listen(self, other: int, line: Line) -> None:
        """Hear from one process until it goes; process 0 tells the others."""
        while True:
            message = line.receive()
            about = other if message is None else message["process"]
            code = None if message is None else message["bye"]
            if about not in self.gone and about != self._process:
                if code != 0:
                    self._note(about, "was lost" if code is None else f"ended with exit code {code}")
                if self._process == 0:
                    for another, theirs in self._lines.items():
                        if another != about and code != 0:
                            theirs.send({"bye": code, "process": about})
            if message is None or about == other:
                return

    def _note(self, process: int, how: str) -> None:
        if not self.gone:
            threading.Thread(target=self._end_in_time, daemon=True).start()
        self.gone[process] = how
        self._news.set()

    def _end_in_time(self) -> None:
        time.sleep(GRACE_SECONDS / 10)
        _log.error("%s", self.lost())
        time.sleep(GRACE_SECONDS)
        _log.error("%s ends, for it would wait in vain: %s", self.names[self._process], self.lost())
        os._exit(1)


def meet(coordinator: str, count: int, process: int, seconds: float) -> Peers:
    """Wait until all `count` processes of a run are there; this one is number `process`.

    They meet at the address HOST:PORT of process 0, where JAX's service is to be afterwards.

    Raises:
        Failed: some have not come within `seconds`; they are named.
        InputError: the flags of two processes do not fit together.

    """
    host, _, port = coordinator.rpartition(":")
    host, name = host.strip("[]"), socket.gethostname()
    deadline = time.monotonic() + seconds
    if process == 0:
        return _receive(int(port), count, name, deadline, seconds)
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=HELLO_SECONDS)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise Failed(
                    f"process 0 was not found at {coordinator} within {seconds:g} s by process {process} ({name}); "
                    "start the same command on every host, and look at the log of process 0"
                ) from None
            time.sleep(0.2)
    line = Line(connection)
    line.send({"process": process, "count": count, "host": name})
    answer = line.receive(max(1.0, deadline - time.monotonic()) + HELLO_SECONDS)
    if answer is None or "hosts" not in answer:
        line.close()
        if answer is not None and "wrong" in answer:
            raise InputError(answer["wrong"])
        raise Failed(
            answer["missing"]
            if answer is not None and "missing" in answer
            else f"process 0 at {coordinator} ended before all processes were there"
        )
    return Peers(process, answer["hosts"], {0: line})


def _receive(port: int, count: int, name: str, deadline: float, seconds: float) -> Peers:
    lines: dict[int, Line] = {}
    hosts: dict[int, str] = {0: name}

    def refuse(kind: str, sentence: str, *more: Line) -> None:
        for line in (*lines.values(), *more):
            line.send({kind: sentence})
            line.close()

    dual = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=count
        )
    except OSError as error:
        raise InputError(f"port {port} of process 0 cannot be opened: {error.strerror}; take another one") from None
    with listener:
        while len(hosts) < count:
            missing = ", ".join(str(i) for i in range(count) if i not in hosts)
            left = deadline - time.monotonic()
            if left <= 0:
                sentence = (
                    f"of {count} processes, those numbered {missing} were not heard of within {seconds:g} s; "
                    f"here are {', '.join(f'{i} ({host})' for i, host in sorted(hosts.items()))}; "
                    "look at the hosts of those that are missing, and start the same command on every host"
                )
                refuse("missing", sentence)
                raise Failed(sentence)
            listener.settimeout(min(left, TELL_SECONDS))
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                if left > TELL_SECONDS:
                    _log.warning("waiting for processes %s of %d", missing, count)
                continue
            line = Line(connection)
            hello = line.receive(HELLO_SECONDS)
            if hello is None or not {"process", "count", "host"} <= hello.keys():
                line.close()  # somebody else
                continue
            other, wrong = hello["process"], ""
            if hello["count"] != count:
                wrong = f"--num-processes is {count} for process 0 and {hello['count']} for process {other}"
            elif other in hosts:
                wrong = f"--process-id {other} was given twice, on {hosts[other]} and on {hello['host']}"
            if wrong:
                refuse("wrong", wrong, line)
                raise InputError(wrong)
            lines[other], hosts[other] = line, hello["host"]
    names = [hosts[i] for i in range(count)]
    for line in lines.values():
        line.send({"hosts": names})
    return Peers(0, names, lines)
