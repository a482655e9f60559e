"""Reads request bodies, in memory only, with a limit on size and on time.

Starlette's own form parser puts uploads above a megabyte into temporary files, so forms are parsed here. A part's file
name is ignored. The content is not looked at here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from visard_web.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

FORM = "multipart/form-data"
PHOTO_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/avif", "image/heic", "image/heif"),
    "application/octet-stream",
)
FORM_OVERHEAD = 16 * 1024  # boundaries, headers and the small fields beside a photo

_PARTS = 8


async def read_body(request: Request, max_bytes: int, timeout_s: float, *, overhead: int = 0) -> bytes:
    """Read a body.

    Args:
        request: whose body has not been touched.
        max_bytes: the limit that a caller is told.
        timeout_s: from now to its end.
        overhead: bytes around what is limited; not one more than both is kept.

    Raises:
        Problem: 413, it is larger; 408, it does not come.
        ClientDisconnect: the caller has gone.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes + overhead:
        raise _too_large(max_bytes)

    async def read() -> bytes:
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes + overhead:
                raise _too_large(max_bytes)
            pieces.append(piece)
        return b"".join(pieces)

    try:
        return await asyncio.wait_for(read(), timeout_s)
    except asyncio.TimeoutError:
        raise Problem(
            408, "TooSlow", f"the upload did not end within {timeout_s:g} s: try again", {"Connection": "close"}
        ) from None


def media_type(content_type: str) -> str:
    """Take the media type, in small letters, out of a Content-Type header."""
    return content_type.partition(";")[0].strip().lower()


def parse_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Take a form apart. To be called on a worker thread: a hostile form takes a while.

    Args:
        content_type: the header, with the boundary in it.
        body: all of it.

    Returns:
        Name → content of each part.

    Raises:
        Problem: 400, it is not a whole, well-formed form; two parts have one name; it has more than a few parts.
    """
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise _malformed("its Content-Type has no boundary")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:  # whose message may quote what was sent
        raise _malformed("a boundary or a header is not where it belongs") from None
    if not parts.whole:
        raise _malformed("it ends too early")
    return parts.done


class _Parts:
    """Collects what the parser calls out."""

    def __init__(self) -> None:
        self.done: dict[str, bytes] = {}
        self.whole = False
        self._header = self._value = b""
        self._disposition = b""
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition, self._data = b"", []

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if not name or name in self.done or len(self.done) == _PARTS:
            raise _malformed("a part has no name, or that of another, or there are too many")
        self.done[name] = b"".join(self._data)

    def _finish(self) -> None:
        self.whole = True


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        413, "PhotoTooLarge", f"the upload is larger than {max_bytes / 2**20:.3g} MB: reduce the photo first"
    )


def _malformed(what: str) -> Problem:
    return Problem(400, "MalformedForm", f"the form cannot be read: {what}")
