"""Bytes over http(s), continued after an interruption; hf:// addresses are read over https."""

import email.utils
import json
import os
import re
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from maejax.errors import FetchError
from maejax.storage.retry import Retry, RetryPolicy

CHUNK = 1 << 18
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_HINTS = {
    401: "log in: give a token, such as HF_TOKEN for Hugging Face",
    403: "the token or account may not read it; accept the data set's terms, or ask for access",
    404: "correct the address",
    410: "correct the address",
}
_REASONS = (
    (urllib3.exceptions.NameResolutionError, "the name of the host is not known"),
    (urllib3.exceptions.ConnectTimeoutError, "no connection in time"),
    (urllib3.exceptions.ReadTimeoutError, "no byte came in time"),
    (urllib3.exceptions.NewConnectionError, "no connection"),
    (urllib3.exceptions.SSLError, "the connection is not secure"),
)


def read_web(address: str, policy: RetryPolicy, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield the bytes of an http(s) or hf:// address, from the first to the last.

    After a reset, a stall or a transient error of the server, reading continues at the byte reached. Raises FetchError
    for a permanent error, for a file that changed in between, and when the policy's time is up.
    """
    url, headers = resolve(address)
    retry, done = Retry(policy, stop), 0
    identity: str | None = None  # ETag or date of the file, which must not change between two requests
    length: int | None = None
    with _pool(url, policy) as pool:
        while True:
            if done:
                headers["Range"] = f"bytes={done}-"
                if identity is not None and not identity.startswith("W/"):
                    headers["If-Range"] = identity
            response = _request(pool, url, headers, retry)
            try:
                skip = _overlap(response, done)
                now = _version(response)
                total = _length(response)
                if done and (now != identity or (None not in (total, length) and total != length)):
                    raise FetchError("the file on the server changed while it was read; start again")
                identity, length = now, length if total is None else total
                for chunk in response.stream(CHUNK, decode_content=False):
                    new = chunk[skip:]
                    skip -= len(chunk) - len(new)
                    if new:
                        done += len(new)
                        retry.progress()
                        yield new
                if length is None or done == length:
                    return
                retry.wait(f"the connection ended at byte {done} of {length}")
            except urllib3.exceptions.HTTPError as error:
                retry.wait(f"{_describe(error)} at byte {done}" + (f" of {length}" if length is not None else ""))
            finally:
                response.close()


def identify_on_web(address: str, policy: RetryPolicy) -> str:
    """Return ETag or date, and length, of the file at an http(s) or hf:// address; raises FetchError."""
    url, headers = resolve(address)
    with _pool(url, policy) as pool:
        # Not HEAD: a signature is that of one method.
        response = _request(pool, url, headers, Retry(policy, threading.Event()))
        response.close()
    return f"{_version(response) or ''} {_length(response)}"


def list_hf(pattern: str, policy: RetryPolicy) -> list[str]:
    """List the files in the folder of an hf:// address, as hf:// addresses, sorted. Raises FetchError."""
    kind, repo, revision, path = _split_hf(pattern)
    folder = re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0].rstrip("/")
    tree = "/".join(filter(None, [quote(revision, safe=""), quote(folder)]))
    url: str | None = f"{hub_endpoint()}/api/{kind or 'models/'}{repo}/tree/{tree}?recursive=true"
    head = f"hf://{kind}{repo}" + ("" if revision == "main" else f"@{revision.replace('/', '~')}")
    found: list[str] = []
    with _pool(hub_endpoint(), policy) as pool:
        while url:
            response = _request(pool, url, _token_header(), Retry(policy, threading.Event()), preload=True)
            found += [f"{head}/{entry['path']}" for entry in json.loads(response.data) if entry["type"] == "file"]
            following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link", ""))
            url = urljoin(url, following[1]) if following else None
    return sorted(found)


def resolve(address: str) -> tuple[str, dict[str, str]]:
    """Return the http(s) URL of an http(s) or hf:// address, and the headers of a request for it.

    An hf:// address names a file of a data set, hf://datasets/OWNER/NAME[@REVISION]/PATH, or of a model, without
    `datasets/`. Passwords and tokens go into the headers. Raises FetchError if an hf:// address has another form.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "maejax"}
    if address.startswith("hf://"):
        kind, repo, revision, path = _split_hf(address)
        address = f"{hub_endpoint()}/{kind}{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"
    parts = urlsplit(address)
    if parts.username is not None:
        headers |= urllib3.make_headers(basic_auth=unquote(f"{parts.username}:{parts.password or ''}"))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), headers
    if (parts.scheme, parts.netloc) == urlsplit(hub_endpoint())[:2]:
        headers |= _token_header()
    return address, headers


def _split_hf(address: str) -> tuple[str, str, str, str]:
    """Split an hf:// address into "datasets/" or "", OWNER/NAME, revision, and path in the repository."""
    match = re.fullmatch(r"hf://(?:models/|(datasets/)?)([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", address)
    if match is None:
        raise FetchError("is no address of a file; write hf://datasets/OWNER/NAME/PATH, or hf://OWNER/NAME/FILE")
    return match[1] or "", match[2], (match[3] or "main").replace("~", "/"), match[4]


def hub_endpoint() -> str:
    """Return the URL of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token_header() -> dict[str, str]:
    """Return the header with the token that the hub's own client would send; urllib3 drops it for other hosts."""
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
        token = file.read_text() if file.is_file() else ""
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _pool(url: str, policy: RetryPolicy) -> urllib3.PoolManager:
    """Open a pool of connections, through the proxy that HTTPS_PROXY and NO_PROXY choose."""
    timeout, parts = urllib3.Timeout(connect=policy.connect, read=policy.stall), urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, timeout=timeout)
    return urllib3.PoolManager(timeout=timeout)


def _request(
    pool: urllib3.PoolManager, url: str, headers: dict[str, str], retry: Retry, *, preload: bool = False
) -> urllib3.BaseHTTPResponse:
    """Send a GET request until it succeeds; raises FetchError for an error that will not pass."""
    # urllib3 follows redirects only; which errors are retried, and when, is decided here.
    redirects = urllib3.Retry(
        None, connect=0, read=0, status=0, other=0, redirect=10, respect_retry_after_header=False, raise_on_status=False
    )
    while True:
        try:
            response = pool.request("GET", url, headers=headers, preload_content=preload, retries=redirects)
        except urllib3.exceptions.HTTPError as error:
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, urllib3.exceptions.SSLError):
                raise FetchError(f"{_describe(error)}; check the certificate and the clock") from None
            if isinstance(error, urllib3.exceptions.LocationValueError):
                raise FetchError("the address cannot be read; correct it") from None
            if isinstance(cause, urllib3.exceptions.ResponseError):  # too many redirects
                raise FetchError(str(cause)) from None
            retry.wait(_describe(error))
            continue
        if response.status in (200, 206):
            return response
        response.close()
        if response.status == 416:
            raise FetchError("the file on the server became shorter while it was read; start again")
        status = f"HTTP {response.status} {response.reason or ''}".rstrip()
        if response.status not in _TRANSIENT:
            hint = _HINTS.get(response.status)
            raise FetchError(status + (f": {hint}" if hint else ""))
        retry.wait(status, _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(value: str) -> float | None:
    if value.strip().isdecimal():
        return float(value)
    with suppress(ValueError):  # "", or no date
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _overlap(response: urllib3.BaseHTTPResponse, done: int) -> int:
    """Return how many bytes at the start of a response were received before."""
    if response.status == 200:  # the server knows no ranges, or the file changed; its identity decides which
        return done
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) > done:
        raise FetchError("the server answers with another range of bytes than was asked for")
    return done - int(match[1])


def _version(response: urllib3.BaseHTTPResponse) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return the length of the whole file in bytes, None if the server does not name it."""
    header = "Content-Range" if response.status == 206 else "Content-Length"
    total = response.headers.get(header, "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _describe(error: Exception) -> str:
    """Return a short reason without the address, which urllib3's own message contains."""
    cause = getattr(error, "reason", None) or error
    return next((reason for kind, reason in _REASONS if isinstance(cause, kind)), "the connection broke")
