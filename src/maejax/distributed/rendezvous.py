"""The processes of a run by name, which JAX's own service lacks: those missing at the start, and those lost later."""

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from maejax.errors import Failed, InputError

FIRST_LOG_SECONDS, LOG_SECONDS = 5.0, 30.0  # before the first log line about missing processes, between two
GRACE_SECONDS = 20.0  # for a process to notice by itself that another one is lost; then it is ended
HELLO_SECONDS = 10.0  # timeout of the first message

_log = logging.getLogger("maejax.training")


class _Line:
    """A connection that carries JSON messages, one a line."""

    def __init__(self, connection: socket.socket):
        self._connection, self._file, self._sending = connection, connection.makefile("rb"), threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # a machine that lost power closes no connection; probe it
            for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, message: dict[str, Any]) -> None:
        with self._sending, suppress(OSError):  # the other end is gone
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Wait for a message; return None if the other end is gone, does not answer, or sends no JSON object."""
        try:
            self._connection.settimeout(seconds)
            message = json.loads(self._file.readline(1 << 20))
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        self._file.close()
        self._connection.close()


class Peers:
    """The other processes. `names` holds all of them in order, `gone` how each ended that ended before this one.

    `together` is the number of processes on this one's host.

    Each sends signs of life; one that is silent for `patience` seconds counts as lost. The machine of such a process
    was paused, as in a live migration, or its network is down.
    """

    def __init__(self, process: int, hosts: list[str], lines: dict[int, _Line], patience: float):
        self.names = [f"process {i} ({host})" for i, host in enumerate(hosts)]
        self.together = hosts.count(hosts[process])
        self.gone: dict[int, str] = {}
        self._process, self._lines, self._patience = process, lines, patience
        self._changed = threading.Event()
        for other, line in lines.items():
            threading.Thread(target=self._listen, args=(other, line), daemon=True).start()
        threading.Thread(target=self._live, daemon=True).start()

    def announce_end(self, code: int) -> None:
        """Send the others the exit code of this process."""
        for line in self._lines.values():
            line.send({"bye": code, "process": self._process})

    def lost(self, seconds: float = 0.0) -> str:
        """Return a sentence on the lost processes, "" if none; wait at most `seconds` for one."""
        self._changed.wait(seconds)
        return " and ".join(f"{self.names[i]} {how}" for i, how in sorted(self.gone.items()))

    def _listen(self, other: int, line: _Line) -> None:
        """Receive messages from one process until it ends; process 0 forwards them to the others."""
        while True:
            asked = time.monotonic()
            message = line.receive(self._patience)
            if message is None:
                silent = time.monotonic() - asked >= self._patience
                how = f"was silent for {self._patience:g} s: paused, or without a network" if silent else "was lost"
                message = {"bye": None, "process": other, "how": how}
            if "bye" not in message:
                continue
            about, code = message["process"], message["bye"]
            if code != 0 and about not in self.gone and about != self._process:
                if not self.gone:
                    threading.Thread(target=self._end_in_time, daemon=True).start()
                self.gone[about] = message.get("how") or f"ended with exit code {code}"
                self._changed.set()
                for another, theirs in self._lines.items() if self._process == 0 else ():
                    if another != about:
                        theirs.send(message)
            if about == other:
                return

    def _live(self) -> None:
        """Send signs of life, and say so where this process was paused."""
        while True:
            for line in self._lines.values():
                line.send({"alive": self._process})
            slept = time.monotonic()
            time.sleep(self._patience / 6)
            if (paused := time.monotonic() - slept) > self._patience:
                _log.error("%s did not run for %.0f s: its machine was paused", self.names[self._process], paused)

    def _end_in_time(self) -> None:
        time.sleep(GRACE_SECONDS / 10)
        _log.error("%s", self.lost())
        time.sleep(GRACE_SECONDS)
        _log.error("%s ends, for it would wait in vain: %s", self.names[self._process], self.lost())
        os._exit(1)


def meet(coordinator: str, count: int, process: int, seconds: float, patience: float) -> Peers:
    """Wait until all `count` processes of a run are there; this one is number `process`; `patience` as of `Peers`.

    They meet at HOST:PORT of process 0, where JAX's service listens afterwards. Raises Failed with the names of
    processes that did not come within `seconds`, and InputError if the flags of two processes contradict each other.
    """
    host, _, port = coordinator.rpartition(":")
    host, name = host.strip("[]"), socket.gethostname()
    deadline = time.monotonic() + seconds
    if process == 0:
        return _gather(int(port), count, name, deadline, seconds, patience)
    told = time.monotonic() + FIRST_LOG_SECONDS
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=HELLO_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failed(
                    f"process 0 was not found at {coordinator} within {seconds:g} s by process {process} ({name}): "
                    f"{error.strerror or error}; "
                    "start the same command on every host, and look at the log of process 0"
                ) from None
            if time.monotonic() > told:
                _log.warning("process %d (%s) waits for process 0 at %s", process, name, coordinator)
                told = time.monotonic() + LOG_SECONDS
            time.sleep(0.2)
    line = _Line(connection)
    line.send({"process": process, "count": count, "host": name})
    answer = line.receive(max(1.0, deadline - time.monotonic()) + HELLO_SECONDS) or {}
    if "hosts" in answer:
        return Peers(process, answer["hosts"], {0: line}, patience)
    line.close()
    if "wrong" in answer:
        raise InputError(answer["wrong"])
    raise Failed(answer.get("missing", f"process 0 at {coordinator} ended before all processes were there"))


def _gather(port: int, count: int, name: str, deadline: float, seconds: float, patience: float) -> Peers:
    """Wait as process 0 until all others have sent their first message, and answer with the names of all hosts."""
    lines: dict[int, _Line] = {}
    hosts: dict[int, str] = {0: name}

    def refuse(kind: str, sentence: str, *more: _Line) -> None:
        for line in (*lines.values(), *more):
            line.send({kind: sentence})
            line.close()

    dual = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=count
        )
    except OSError as error:
        raise InputError(
            f"port {port} of process 0 cannot be opened: {error.strerror}; take another one in --coordinator, or with "
            "--distributed in the environment variable JAX_COORDINATOR_PORT, the same one for all processes"
        ) from None
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
            listener.settimeout(min(left, LOG_SECONDS))
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                if left > LOG_SECONDS:
                    _log.warning("waiting for processes %s of %d", missing, count)
                continue
            line = _Line(connection)
            hello = line.receive(HELLO_SECONDS)
            if hello is None or not {"process", "count", "host"} <= hello.keys():
                line.close()  # not a process of a run
                continue
            other, host = hello["process"], hello["host"]
            if hello["count"] != count:
                wrong = f"--num-processes is {count} for process 0 and {hello['count']} for process {other}"
            elif other in hosts:
                wrong = f"--process-id {other} was given twice, on {hosts[other]} and on {host}"
            else:
                lines[other], hosts[other] = line, host
                continue
            refuse("wrong", wrong, line)
            raise InputError(wrong)
    names = [hosts[i] for i in range(count)]
    for line in lines.values():
        line.send({"hosts": names})
    return Peers(0, names, lines, patience)
