"""gzip and zstd streams, recognised by their first bytes."""

import itertools
import zlib
from collections.abc import Callable, Iterator

from backports import zstd

from maejax.errors import FetchError


def unpack(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip or zstd, pass other bytes through; raises FetchError for damage, an early end, or a web page."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 512:
            break
    rest = itertools.chain([head] if head else [], chunks)
    if head.startswith(b"\x1f\x8b"):
        return _inflate(rest, "gzip", _Gzip, zlib.error)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _inflate(rest, "zstd", zstd.ZstdDecompressor, zstd.ZstdError)
    start = head.lstrip()[:512].lower()
    if start.startswith(b"<") and (b"<html" in start or b"<!doctype" in start or b"<?xml" in start):
        raise FetchError(f"is a web page, not a tar (starts with {head.lstrip()[:40]!r}); the address may need a login")
    return rest


class _Gzip:
    """A decompressor of zlib with the interface of zstd's."""

    needs_input = True

    def __init__(self):
        self._inner = zlib.decompressobj(31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        result = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.eof, self.unused_data = self._inner.eof, self._inner.unused_data
        self.needs_input = not self._inner.unconsumed_tail
        return result


def _inflate(chunks: Iterator[bytes], kind: str, start: Callable, failure: type[Exception]) -> Iterator[bytes]:
    decoder = start()
    begun = False  # inside a member
    for chunk in chunks:
        while chunk or not decoder.needs_input:
            try:
                data = decoder.decompress(chunk, 1 << 20)
            except failure as error:
                raise FetchError(f"the {kind} data are damaged: {error}") from None
            begun, chunk = True, b""
            if data:
                yield data
            if decoder.eof:
                chunk, decoder, begun = decoder.unused_data.lstrip(b"\0"), start(), False  # tar pads with zeros
    if begun:
        raise FetchError(f"the {kind} data end early")
