"""Proves that a file which is to be published holds a picture and no metadata of the photo it was made from.

By construction nothing but pixels reaches the encoder, and the few tags that the caller wanted to keep. This reads the
result back, part by part, and lets through only what a picture needs, the one XMP packet that says what it is, and
these tags to the byte: a list of what may be there, not of what may not, so that no kind of metadata can be forgotten.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visard_preprocess.exif import Exif
    from visard_preprocess.photo import Format, SourceType

_JPEG_PICTURE = {0xDB, 0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDD}  # tables, frame, scan, restart interval
_JFIF = b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"  # version 1.1, no unit, 1:1, no thumbnail
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\x00"
_XMP_IN_PNG = b"XML:com.adobe.xmp\x00\x00\x00\x00\x00"


def prove_clean(encoded: bytes, format_: Format, source_type: SourceType | None, exif: Exif) -> None:
    """Read an encoded photo back and make sure that it holds a picture, what is expected beside it, and nothing else.

    Raises:
        RuntimeError: there is something else in it: a defect, and the photo must not be published.
    """
    from visard_preprocess.exif import exif_block
    from visard_preprocess.photo import xmp_packet

    parts = {"JPEG": _jpeg_parts, "PNG": _png_parts, "WEBP": _webp_parts}[format_](encoded)
    expected = []
    if block := exif_block(exif):
        expected.append(block if format_ == "JPEG" else block.removeprefix(b"Exif\0\0"))
    if source_type is not None:
        expected.append({"JPEG": _XMP_IN_JPEG, "PNG": _XMP_IN_PNG, "WEBP": b""}[format_] + xmp_packet(source_type))
    if sorted(parts) != sorted(expected):  # PNG has them in another order
        raise RuntimeError(f"the {format_} file has {len(parts)} parts besides its picture, not {len(expected)}")


def _jpeg_parts(data: bytes) -> list[bytes]:
    """Everything in a JPEG file that is not its picture."""
    parts: list[bytes] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        body = data[at + 4 : at + 2 + length]
        if marker not in _JPEG_PICTURE and not (marker == 0xE0 and body == _JFIF):
            parts.append(body)
        at += 2 + length
        if marker == 0xDA:  # the coded picture goes on to the next marker that is neither stuffing nor a restart
            while not (data[at : at + 1] == b"\xff" and data[at + 1] not in (0, *range(0xD0, 0xD8))):
                at = data.index(b"\xff", at + 1)
    trailer = data[at + 2 :]
    return [*parts, trailer] if trailer or data[at : at + 2] != b"\xff\xd9" else parts


def _png_parts(data: bytes) -> list[bytes]:
    parts: list[bytes] = []
    at = 8
    kind = b""
    while kind != b"IEND" and at + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    return [*parts, data[at:]] if at != len(data) or kind != b"IEND" else parts


def _webp_parts(data: bytes) -> list[bytes]:
    parts: list[bytes] = []
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
        if kind not in (b"VP8 ", b"VP8L", b"VP8X"):
            parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return [*parts, data[at:]] if at != len(data) else parts
