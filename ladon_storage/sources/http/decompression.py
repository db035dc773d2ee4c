"""The content encodings of bodies, decompressed in steps and to their very end.

- A stream has an end marker of its own. A stream without it was cut, even if as many bytes arrived
  as were announced: a cache that kept half of an answer announces the half.
- A step returns at most `STEP_BYTES`, however far a few compressed bytes expand.
- A gzip or ZIP file that is served as it is, is unpacked by its first bytes, which no text has.
- Only encodings that can be decompressed here are requested: brotli and zstd need a library.
- An encoding that is no compression is passed over: a charset, or `aws-chunked` of a storage.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

from ladon_storage.sources.http.zip_files import FIRST_BYTES, ZipFileContent, ZipFileError

STEP_BYTES = 2**18
"""Decompressed bytes of one step."""


class DecompressionError(ValueError):
    """Raised when a body is not compressed as it declares, or was cut."""


class UnknownEncodingError(DecompressionError):
    """Raised when a body has an encoding that cannot be undone here, however often it is sent."""


class _Stream(Protocol):
    """One compressed stream; ``left`` is the data that it has not consumed."""

    left: bytes

    @property
    def is_over(self) -> bool: ...

    @property
    def has_more(self) -> bool: ...

    def step(self, data: bytes) -> bytes: ...


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)
        self.left = b""
        self.has_more = False

    @property
    def is_over(self) -> bool:
        return self._inner.eof

    def step(self, data: bytes) -> bytes:
        found = self._inner.decompress(data, STEP_BYTES)
        self.left = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
        self.has_more = len(found) == STEP_BYTES and not self._inner.eof
        return found


class _Brotli:
    left = b""

    def __init__(self, module: Any) -> None:
        self._inner = module.Decompressor()
        self.has_more = False

    @property
    def is_over(self) -> bool:
        return bool(self._inner.is_finished())

    def step(self, data: bytes) -> bytes:
        found = bytes(self._inner.process(data, output_buffer_limit=STEP_BYTES))
        # It accepts more data before it has returned all output of the last.
        self.has_more = bool(found) and not self.is_over
        return found


class _Zstd:
    def __init__(self, module: Any) -> None:
        self._inner = module.ZstdDecompressor()
        self.left = b""

    @property
    def is_over(self) -> bool:
        return bool(self._inner.eof)

    @property
    def has_more(self) -> bool:
        return not (self.is_over or self._inner.needs_input)

    def step(self, data: bytes) -> bytes:
        found = bytes(self._inner.decompress(data, STEP_BYTES))
        self.left = self._inner.unused_data
        return found


def _module(*names: str, lacks: str = "") -> Any:
    for name in names:
        with suppress(ImportError):
            module = import_module(name)
            # Without a bound on its output at once, a few bytes would fill the memory.
            if not lacks or hasattr(module.Decompressor, lacks):
                return module
    return None


_brotli = _module("brotli", lacks="can_accept_more_data")
_zstd = _module("compression.zstd", "backports.zstd")


def _streams() -> dict[str, Callable[[bytes], _Stream]]:
    streams: dict[str, Callable[[bytes], _Stream]] = {
        "gzip": lambda _: _Zlib(16 + zlib.MAX_WBITS),
        # Its head, which begins with the number of the method, is often omitted.
        "deflate": lambda data: _Zlib(
            zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS
        ),
    }
    if _brotli is not None:
        streams["br"] = lambda _: _Brotli(_brotli)
    if _zstd is not None:
        streams["zstd"] = lambda _: _Zstd(_zstd)
    return streams


_STREAMS = _streams()

ACCEPTED = ", ".join(_STREAMS)
"""The content encodings that can be decompressed here, as `Accept-Encoding` names them."""

# The possible first bytes of a stream that follows another in the same body; zstd has empty ones,
# too.
_FOLLOWS = {"gzip": b"\x1f", "zstd": b"\x28" + bytes(range(0x50, 0x60))}


# With it begins a compressed file that is served as it is, such as feed.json.gz, and no text.
_GZIP_FILE = b"\x1f"


_FRAMED = "aws-chunked"
_FRAME = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;chunk-signature=|\r\n)")
"""The head of a chunk; a storage that stores the chunks as they come usually takes them apart."""

_NO_COMPRESSIONS = frozenset({"", "identity", "none", "binary", "7bit", "8bit", _FRAMED})


def _is_no_compression(name: str) -> bool:
    """Return whether an encoding compresses nothing: charsets are often named as one."""
    try:
        return name in _NO_COMPRESSIONS or bool("a".encode(name))
    except (LookupError, ValueError):
        return False


class Decompressor:
    """The decompression of one body, also of one that is a compressed file itself.

    Args:
        packing: The answer's `Content-Encoding`; empty for none.

    Raises:
        UnknownEncodingError: The encoding was not requested.
    """

    def __init__(self, packing: str) -> None:
        names = [each.strip().lower().removeprefix("x-") for each in packing.split(",")]
        self._name = ", ".join(each for each in names if not _is_no_compression(each))
        self._may_be_framed = _FRAMED in names
        if self._name and self._name not in _STREAMS:
            raise UnknownEncodingError(
                f"is compressed with {self._name!r}, which was not requested"
            )
        self._stream: _Stream | None = None
        self._has_begun, self._stated_by = False, "header"
        self._head = b""
        self._zip: ZipFileContent | None = None

    @property
    def is_over(self) -> bool:
        """Whether there was a compressed stream, and its end came."""
        return self._stream is not None and self._stream.is_over

    def unpacked(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed content of the next bytes of a body, a step at a time.

        Raises:
            DecompressionError: They are not compressed as the answer declares.
        """
        if not self._has_begun and not (data := self._begun(data)):
            return
        if self._zip is not None:
            self._zip.add(data)
            return
        if not self._name:
            yield data
            return
        began = self._stream is not None
        try:
            while data or (self._stream is not None and self._stream.has_more):
                if self._stream is None or self._stream.is_over:
                    if began and not (data := self._following(data)):
                        return
                    self._stream, began = _STREAMS[self._name](data), True
                found = self._stream.step(data)
                data = self._stream.left
                if found:
                    yield found
        except Exception as error:  # each library has errors of its own
            problem = f"is not valid {self._name}, which its {self._stated_by} states: {error}"
        else:
            return
        raise DecompressionError(problem)

    def finish(self) -> Iterator[bytes]:
        """Yield what remains of the body at its end: the content of a ZIP file.

        Raises:
            DecompressionError: It was cut, or is a ZIP file that cannot be unpacked.
        """
        if not self._has_begun:
            yield self._head
        if self._zip is not None:
            try:
                yield from self._zip.steps(STEP_BYTES)
            except ZipFileError as error:
                raise DecompressionError(str(error)) from error
        if self._stream is not None and not self._stream.is_over:
            raise DecompressionError(f"was cut off within its {self._name} stream")

    def _begun(self, data: bytes) -> bytes:
        """Return the first bytes of a body as soon as they show whether it is a file."""
        if self._may_be_framed and _FRAME.match(data):
            raise UnknownEncodingError(f"is divided into chunks by {_FRAMED!r}")
        self._head += data
        is_short = len(self._head) < len(FIRST_BYTES[0])
        if not self._name and is_short and any(b.startswith(self._head) for b in FIRST_BYTES):
            return b""
        if not self._name and self._head.startswith(FIRST_BYTES):
            self._zip = ZipFileContent()
        elif not self._name and self._head.startswith(_GZIP_FILE):
            self._name, self._stated_by = "gzip", "first byte"
        self._has_begun = True
        return self._head

    def _following(self, data: bytes) -> bytes:
        """Return the rest after a complete stream: another stream, or nothing if it is padding."""
        data = data.lstrip(b"\0")
        if data and self._name in _FOLLOWS and data[0] not in _FOLLOWS[self._name]:
            raise ValueError("other data follow its end")
        return data if self._name in _FOLLOWS else b""
