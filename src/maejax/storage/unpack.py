"""gzip, bzip2, xz and zstd streams, recognised by their first bytes."""

import bz2
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator

from backports import zstd

from maejax.errors import FetchError


def unpack(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip, bzip2, xz or zstd, pass other bytes through.

    Raises FetchError for damage, an early end, or a web page.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 512:
            break
    rest = itertools.chain([head] if head else [], chunks)
    for magic, kind, start, failure in _KINDS:
        if head.startswith(magic):
            return _inflate(rest, kind, start, failure)
    text = head.lstrip()[:512].lower()
    if text.startswith(b"<") and (b"<html" in text or b"<!doctype" in text or b"<?xml" in text):
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


_KINDS = (
    (b"\x1f\x8b", "gzip", _Gzip, zlib.error),
    (b"BZh", "bzip2", bz2.BZ2Decompressor, OSError),
    (b"\xfd7zXZ", "xz", lzma.LZMADecompressor, lzma.LZMAError),
    (b"\x28\xb5\x2f\xfd", "zstd", zstd.ZstdDecompressor, zstd.ZstdError),
)


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
