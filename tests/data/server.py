"""A web server on loopback that misbehaves as it is told."""

import threading

from ..loopback import Loopback, Quiet


class Server(Loopback):
    """Serves `files` (path -> bytes). `plans` (path -> list of moods) says how it treats the first requests of a path.

    Moods: a status number; (status, headers); "reset" or "stall" after half of what was asked, the stall until `stalls`
    is set; "short" says more bytes than it sends. Without `named` an answer to a Range hides the whole length. `seen`
    records (path, Range, Authorization) of each request.
    """

    def __init__(self):
        self.files, self.plans, self.seen = {}, {}, []
        self.ranges, self.named, self.stalls = True, True, threading.Event()
        super().__init__(_Handler)

    def stop(self):
        """End; what has stalled hangs up."""
        self.stalls.set()
        super().stop()


class _Handler(Quiet):
    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.seen.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        plan = server.plans.get(path, [])
        mood = plan.pop(0) if plan else None
        if isinstance(mood, int | tuple):
            status, headers = (mood, {}) if isinstance(mood, int) else mood
            self._answer(status, b"", headers)
            return
        data = server.files.get(path)
        if data is None:
            self._answer(404, b"", {})
            return
        start, headers, status = 0, {"ETag": f'"{hash(data)}"'}, 200
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data) if server.named else '*'}"
        body = data[start:]
        if mood is None:
            self._answer(status, body, headers)
            return
        self._answer(status, body[: len(body) // 2], headers, length=len(body))
        self.wfile.flush()
        if mood == "stall":
            server.stalls.wait()
        self.close_connection = True

    def _answer(self, status, body, headers, length=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body) if length is None else length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
