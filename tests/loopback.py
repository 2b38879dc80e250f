"""A web server on loopback, in a thread of the test; what it answers is its handler's."""

import http.server
import threading


class Loopback(http.server.ThreadingHTTPServer):
    """Serves at `url` from the start until `stop`."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients that hang up

    def stop(self):
        self.shutdown()
        self.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    """A handler that keeps connections open and writes no log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer goes at once

    def log_message(self, *_):
        pass
