"""Bytes over http(s), from the byte reached after an interruption; hf:// addresses are such bytes too."""

import email.utils
import json
import os
import re
import threading
import time
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from maejax.errors import FetchError
from maejax.storage.retry import Patience, Retry

CHUNK = 1 << 18
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_HINTS = {
    401: "log in: give a token, such as HF_TOKEN for Hugging Face",
    403: "the token or account may not read it; accept the data set's terms, or ask for access",
    404: "correct the address",
    410: "correct the address",
}


def read_web(address: str, patience: Patience, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield the bytes of an http(s) or hf:// address, from the first to the last.

    After a reset, a stall or a passing error of the server it goes on from the byte reached. Raises FetchError for what
    will not pass, for a file that changed meanwhile, and where patience is at its end.
    """
    url, headers = resolve(address)
    retry = Retry(patience, stop)
    done = 0
    identity: str | None = None  # of the file: what it is called at the first answer must not change
    length: int | None = None
    with _pool(url, patience) as pool:
        while True:
            ask = dict(headers)
            if done:
                ask["Range"] = f"bytes={done}-"
                if identity is not None and not identity.startswith("W/"):
                    ask["If-Range"] = identity
            try:
                response = _get(pool, url, ask)
            except urllib3.exceptions.HTTPError as error:
                _check_passing(error)
                retry.wait(_plain(error))
                continue
            try:
                if response.status not in (200, 206):
                    _refused(response, retry)
                    continue
                skip = _skipped(response, done)
                new_identity, new_length = _identity(response), _length(response)
                if done and ((identity, length) != (new_identity, new_length)):
                    raise FetchError("the file on the server changed while it was read; start again")
                identity, length = new_identity, new_length
                for chunk in response.stream(CHUNK, decode_content=False):
                    drop = min(skip, len(chunk))
                    skip -= drop
                    if drop < len(chunk):
                        done += len(chunk) - drop
                        retry.progress()
                        yield chunk[drop:]
                if length is None or done == length:
                    return
                retry.wait(f"the connection ended at byte {done} of {length}")
            except urllib3.exceptions.HTTPError as error:
                retry.wait(f"{_plain(error)} at byte {done}" + (f" of {length}" if length is not None else ""))
            finally:
                response.close()


def read_text(address: str, patience: Patience, limit: int = 64 << 20) -> str:
    """Return a small text file, such as a list of shards; raises FetchError as `read_web`, and beyond `limit` bytes."""
    data = b""
    for chunk in read_web(address, patience, threading.Event()):
        data += chunk
        if len(data) > limit:
            raise FetchError(f"holds more than {limit >> 20} MiB, which is no list")
    return data.decode(errors="replace")


def list_hf(pattern: str, patience: Patience) -> list[str]:
    """List the files of a Hugging Face data set in the folder of an hf:// address, as hf:// addresses, sorted.

    Raises FetchError.
    """
    repo, revision, path = _split_hf(pattern)
    folder = re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0].rstrip("/")
    url: str | None = f"{_endpoint()}/api/datasets/{repo}/tree/{quote(revision, safe='')}" + (
        f"/{quote(folder)}" if folder else ""
    )
    url += "?recursive=true"
    found: list[str] = []
    with _pool(_endpoint(), patience) as pool:
        retry = Retry(patience, threading.Event())
        while url:
            try:
                response = pool.request("GET", url, headers=_token_header(), retries=_redirects())
            except urllib3.exceptions.HTTPError as error:
                _check_passing(error)
                retry.wait(_plain(error))
                continue
            if response.status != 200:
                _refused(response, retry)
                continue
            head = f"hf://datasets/{repo}" + (f"@{revision}" if revision != "main" else "")
            found += [f"{head}/{entry['path']}" for entry in json.loads(response.data) if entry["type"] == "file"]
            following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link", ""))
            url = urljoin(url, following[1]) if following else None
    return sorted(found)


def resolve(address: str) -> tuple[str, dict[str, str]]:
    """Return the http(s) address behind an address, and the headers that it needs."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "maejax"}
    if address.startswith("hf://"):
        repo, revision, path = _split_hf(address)
        url = f"{_endpoint()}/datasets/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"
    else:
        url = address
    parts = urlsplit(url)
    if parts.username is not None:
        host = parts.netloc.rpartition("@")[2]
        headers |= urllib3.make_headers(basic_auth=f"{parts.username}:{parts.password or ''}")
        url = parts._replace(netloc=host).geturl()
    elif (parts.scheme, parts.netloc) == urlsplit(_endpoint())[:2]:
        headers |= _token_header()
    return url, headers


def _split_hf(address: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", address)
    if match is None:
        raise FetchError("is no address of a file; write hf://datasets/OWNER/NAME/PATH")
    return match[1], (match[2] or "main").replace("~", "/"), match[3]


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token_header() -> dict[str, str]:
    """Find the token as the hub's own client does. urllib3 drops the header where a redirect leaves the host."""
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
        token = file.read_text() if file.is_file() else ""
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _pool(url: str, patience: Patience) -> urllib3.PoolManager:
    """Connect as the environment says: HTTPS_PROXY, NO_PROXY."""
    timeout = urllib3.Timeout(connect=patience.connect, read=patience.stall)
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, timeout=timeout)
    return urllib3.PoolManager(timeout=timeout)


def _redirects() -> urllib3.Retry:
    # Only redirects are followed by urllib3; what is tried again, and when, is decided here.
    return urllib3.Retry(
        total=None,
        connect=0,
        read=0,
        status=0,
        other=0,
        redirect=10,
        respect_retry_after_header=False,
        raise_on_status=False,
    )


def _get(pool: urllib3.PoolManager, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    return pool.request("GET", url, headers=headers, preload_content=False, retries=_redirects())


def _refused(response: urllib3.BaseHTTPResponse, retry: Retry) -> None:
    """Wait where a status may pass; raises FetchError where it will not."""
    status = f"HTTP {response.status} {response.reason or ''}".rstrip()
    if response.status == 416:
        raise FetchError("the file on the server became shorter while it was read; start again")
    if response.status not in _TRANSIENT:
        hint = _HINTS.get(response.status)
        raise FetchError(status + (f": {hint}" if hint else ""))
    retry.wait(status, _retry_after(response.headers.get("Retry-After")))


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _skipped(response: urllib3.BaseHTTPResponse, done: int) -> int:
    """Return how many bytes of the answer were had before."""
    if response.status == 200:  # the server does not know ranges, or the file is another one: told by its identity
        return done
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) > done:
        raise FetchError("the server answers with another range of bytes than was asked for")
    return done - int(match[1])


def _identity(response: urllib3.BaseHTTPResponse) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return the length of the whole file."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdecimal() else None


def _check_passing(error: urllib3.exceptions.HTTPError) -> None:
    """Raise FetchError for a failure to connect that no waiting cures."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.SSLError):
        raise FetchError(f"{_plain(error)}; check the certificate and the clock")
    if isinstance(error, urllib3.exceptions.LocationValueError):
        raise FetchError("the address cannot be read; correct it")
    if isinstance(cause, urllib3.exceptions.ResponseError):  # too many redirects
        raise FetchError(str(cause))


def _plain(error: Exception) -> str:
    """Say in a few words what happened; urllib3's own words hold the whole address."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return "the name of the host is not known"
    if isinstance(cause, urllib3.exceptions.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return "no byte came in time"
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        return "no connection"
    if isinstance(cause, urllib3.exceptions.SSLError):
        return "the connection is not secure"
    return "the connection broke"
