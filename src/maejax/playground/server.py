"""The page and its answers over HTTP: who may ask, what is read of a request, and one thread that computes."""

import asyncio
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maejax.errors import InputError
from maejax.playground.playground import Playground
from maejax.playground.upload import MOST_BYTES

PAGE = Path(__file__).with_name("playground.html")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
FIXED = {  # headers of every answer
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
POLICY = "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LEAVING = 2  # seconds that answers on their way have when the server ends


def build_app(playground: Playground, host: str = LOOPBACK[0]) -> Starlette:
    """Build the application that serves a playground on the address `host`, which says by what names it is asked for.

    One thread computes, so that people take turns; another decodes what they send.
    """
    thread, decoding = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    image = playground.form.dtype.itemsize * playground.encoder.channels * playground.encoder.patches
    most = 2 * image * playground.encoder.patch_size**2 + 16 * playground.encoder.patches + 1000

    async def compute(method: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, method, *given)

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY.format(nonce)})

    async def about(request: Request) -> Response:
        return JSONResponse(playground.about() | {"most_bytes": MOST_BYTES})

    async def picture(request: Request) -> Response:
        return JSONResponse(playground.picture(request.path_params["number"]))

    async def thumbnail(request: Request) -> Response:
        return Response(playground.thumbnail(request.path_params["number"]), media_type="image/png")

    async def upload(request: Request) -> Response:
        data, name = await read_body(request, MOST_BYTES), request.query_params.get("name", "")[:100]
        running = asyncio.get_running_loop()
        return JSONResponse(await running.run_in_executor(decoding, playground.upload, data, name))

    async def order(request: Request) -> Response:
        asked = await read_json(request, most)
        return JSONResponse(await compute(playground.order, str(asked.get("kind")), whole(asked, "seed") or 0))

    async def reconstruct(request: Request) -> Response:
        asked = await read_json(request, most)
        given = asked.get("pixels"), asked.get("hidden"), whole(asked, "step")
        return JSONResponse(await compute(playground.reconstruct, *given))

    async def attention(request: Request) -> Response:
        asked = await read_json(request, most)
        layer, head = whole(asked, "layer") or 0, whole(asked, "head") or 0
        return JSONResponse(await compute(playground.attention, asked.get("pixels"), layer, head, whole(asked, "step")))

    async def neighbours(request: Request) -> Response:
        asked = await read_json(request, most)
        step = whole(asked, "step")
        while await compute(playground.encode_some, step):  # others get their answers between two parts
            pass
        return JSONResponse(await compute(playground.neighbours, asked.get("pixels"), whole(asked, "number"), step))

    def wrong(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error), "steps": playground.steps.listed()}, 422)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    routes = [
        Route("/", page),
        Route("/about", about),
        Route("/picture/{number:int}", picture),
        Route("/thumbnail/{number:int}", thumbnail),
        *(Route(f"/{each.__name__}", each, methods=["POST"]) for each in (upload, order, reconstruct, attention)),
        Route("/neighbours", neighbours, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {InputError: wrong, HTTPException: refused}
    app = Starlette(routes=routes, middleware=[Middleware(Guard, host=host)], exception_handlers=handlers)
    thread.submit(playground.warm_up)
    return app


async def read_body(request: Request, most: int) -> bytes:
    """Read the body of a request into memory; raises HTTPException as soon as it is longer than `most` bytes."""
    too_long = HTTPException(413, f"that is more than {most / 2**20:,.0f} MiB; send a smaller picture")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_long
    return bytes(body)


async def read_json(request: Request, most: int) -> dict[str, Any]:
    """Read a request for an answer; raises InputError if it is no JSON object."""
    try:
        asked = json.loads(await read_body(request, most))
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise InputError("the request is no JSON object")
    return asked


def whole(asked: dict[str, Any], name: str) -> int | None:
    """Return a whole number of a request, None if it has none of that name; raises InputError for another value."""
    value = asked.get(name)
    if value is not None and (type(value) is not int or abs(value) > 2**53):
        raise InputError(f"{name} is a whole number")
    return value


class Guard:
    """Refuses requests that pages of other sites make a browser send, and adds the headers of every answer.

    A name that a stranger owns may lead to this machine (DNS rebinding), so the host that is asked for must be this
    one: on loopback its names there, elsewhere a number, `host`, or this machine's name.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.names = app, {*LOOPBACK, host.lower()}
        self.numbers = not is_loopback(host)
        if self.numbers:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return

        async def add_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(FIXED)
            await send(message)

        reason = self.refusal(Headers(scope=scope), scope["path"])
        answer = JSONResponse({"error": reason}, 403) if reason else self.app
        await answer(scope, receive, add_headers)

    def refusal(self, headers: Headers, path: str) -> str:
        """Return why a request is refused, "" if it is not."""
        host = headers.get("host", "")
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            name = ""
        if name not in self.names and not (self.numbers and is_number(name)):
            return f"this server does not answer as {name or 'nobody'}; open the address that maejax serve printed"
        # Following a link to the page is no harm; all else comes from the page itself.
        site = "none" if path == "/" else headers.get("sec-fetch-site", "none")
        if headers.get("origin", f"http://{host}") != f"http://{host}" or site not in ("none", "same-origin"):
            return "requests of other sites are refused"
        return ""


def is_number(host: str) -> bool:
    """Return whether a host is an address in numbers, which no name server decides on."""
    try:
        return bool(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Return whether only this machine itself reaches an address."""
    return host in LOOPBACK or (is_number(host) and ipaddress.ip_address(host.partition("%")[0]).is_loopback)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket at an address, port 0 for any free one; raises InputError if that is not possible."""
    if not 0 <= port < 2**16:  # the system would take the rest of the division
        raise InputError(f"--port {port}: give a number from 0 to 65535")
    try:
        kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host}: no address of this machine; give 127.0.0.1 or 0.0.0.0") from None
    opened = socket.socket(kind, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen()
    except OSError as error:
        opened.close()
        remedy = "give another --port, or --port 0 for any free one"
        raise InputError(f"--host {host} --port {port} cannot be used: {error.strerror}; {remedy}") from None
    return opened


def run(app: Starlette, opened: socket.socket) -> None:
    """Answer requests at an open socket until Ctrl-C."""
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "off"}
    config = uvicorn.Config(app, http="h11", ws="none", timeout_graceful_shutdown=LEAVING, **quiet)
    try:
        uvicorn.Server(config).run(sockets=[opened])
    except KeyboardInterrupt:  # uvicorn raises it again once it has ended
        return
