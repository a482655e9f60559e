"""Harmless metadata that a caller may keep: how a photo was exposed, and when, where it is asked for by name.

A list of what may stay, not of what may not: anything else, places, names, serial numbers, makers' notes, thumbnails
and XMP among it, is never looked at. Each value is read, checked for its type and range, brought to the precision that
a camera shows, and written anew: no byte is copied. What is not as Exif has it stays behind.

Source: CIPA DC-008-2019, "Exchangeable image file format for digital still cameras: Exif Version 2.32", 4.6.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from PIL.TiffImagePlugin import IFDRational

from visard_preprocess import Keep

if TYPE_CHECKING:
    from PIL import Image

Exif = Mapping[str, "int | Fraction | str"]  # name of a tag → its value

_EXIF_IFD = 0x8769
_SHORT, _ASCII, _RATIONAL, _SIGNED_RATIONAL, _UNDEFINED, _LONG = 3, 2, 5, 10, 7, 4
_VERSION = (36864, b"0232")  # a file has to say which version of Exif it follows


@dataclass(frozen=True, kw_only=True)
class _Tag:
    """One that may stay: its number, its type in the file, and what reads its value: None for one that is not right."""

    number: int
    type: int
    read: Callable[[Any], int | Fraction | str | None]


def _whole(low: int, high: int, *others: int) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        return value if type(value) is int and (low <= value <= high or value in others) else None

    return read


def _fraction(low: int, high: int) -> Callable[[Any], Fraction | None]:
    def read(value: Any) -> Fraction | None:
        exact = _exact(value)
        return None if exact is None or not low <= exact <= high else exact.limit_denominator(100)

    return read


def _seconds(value: Any) -> Fraction | None:
    """As a camera shows it: 1/125, or tenths above a quarter."""
    exact = _exact(value)
    if exact is None or not Fraction(1, 100_000) <= exact <= 86_400:
        return None
    return Fraction(1, round(1 / exact)) if exact <= Fraction(1, 4) else Fraction(round(exact * 10), 10)


def _exact(value: Any) -> Fraction | None:
    if not isinstance(value, IFDRational) or type(value.numerator) is not int or not value.denominator:
        return None
    return Fraction(value.numerator, value.denominator)


def _moment(value: Any) -> str | None:
    """A day and a time, to the second."""
    text = value.rstrip("\0") if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9]{4}:[0-9]{2}:[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}", text):
        return None
    try:
        datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    return text


_EXPOSURE = {
    "ExposureTime": _Tag(number=33434, type=_RATIONAL, read=_seconds),
    "FNumber": _Tag(number=33437, type=_RATIONAL, read=_fraction(0, 1000)),
    "ExposureProgram": _Tag(number=34850, type=_SHORT, read=_whole(0, 8)),
    "PhotographicSensitivity": _Tag(number=34855, type=_SHORT, read=_whole(1, 65535)),
    "ExposureBiasValue": _Tag(number=37380, type=_SIGNED_RATIONAL, read=_fraction(-100, 100)),
    "MeteringMode": _Tag(number=37383, type=_SHORT, read=_whole(0, 6, 255)),
    "Flash": _Tag(number=37385, type=_SHORT, read=_whole(0, 0x7F)),
    "FocalLength": _Tag(number=37386, type=_RATIONAL, read=_fraction(0, 100_000)),
    "ExposureMode": _Tag(number=41986, type=_SHORT, read=_whole(0, 2)),
    "WhiteBalance": _Tag(number=41987, type=_SHORT, read=_whole(0, 1)),
    "FocalLengthIn35mmFilm": _Tag(number=41989, type=_SHORT, read=_whole(0, 65535)),
    "SceneCaptureType": _Tag(number=41990, type=_SHORT, read=_whole(0, 3)),
}
# The local time alone: its offset would say in which part of the world.
_DATE = {"DateTimeOriginal": _Tag(number=36867, type=_ASCII, read=_moment)}
_ALL = {**_EXPOSURE, **_DATE}
_KEPT: dict[Keep, dict[str, _Tag]] = {"nothing": {}, "exposure": _EXPOSURE, "date": _DATE, "exposure_and_date": _ALL}


def read_exif(image: Image.Image) -> Exif:
    """Read what may be kept of a picture's metadata: tag → whole number, fraction, or date as Exif writes it.

    Args:
        image: loaded, because a PNG may have its metadata behind its pixels.
    """
    try:
        found = image.getexif().get_ifd(_EXIF_IFD)
        values = {name: tag.read(found.get(tag.number)) for name, tag in _ALL.items()}
    except Exception:  # broken metadata does not make a broken photo
        return {}
    return {name: value for name, value in values.items() if value is not None}


def kept(exif: Exif, keep: Keep) -> Exif:
    """Choose what a caller wants to keep of it."""
    return {name: value for name, value in exif.items() if name in _KEPT[keep]}


def exif_block(exif: Exif) -> bytes:
    """Write these tags, and nothing else, as the Exif block of a file; empty where there are none.

    Raises:
        ValueError: one may not be kept, or has no value that it can have.
    """
    if not exif:
        return b""
    fields = [(_VERSION[0], _UNDEFINED, len(_VERSION[1]), _VERSION[1])]
    for name, value in exif.items():
        if name not in _ALL or _ALL[name].read(_as_read(value)) != value:
            raise ValueError(f"{name} cannot be kept, or not with this value: there are {', '.join(_ALL)}")
        fields.append(_field(_ALL[name], value))
    # A little-endian TIFF: its header, a directory with nothing but the way to the next, and that with the tags.
    start = 8 + 2 + 12 + 4
    header = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, _EXIF_IFD, _LONG, 1, start, 0)
    after = start + 2 + 12 * len(fields) + 4
    entries, values = b"", b""
    for number, type_, count, data in sorted(fields):
        entries += struct.pack("<HHI", number, type_, count)
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", after + len(values))
            values += data
    return b"Exif\0\0" + header + struct.pack("<H", len(fields)) + entries + struct.pack("<I", 0) + values


def _as_read(value: int | Fraction | str) -> Any:
    return IFDRational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def _field(tag: _Tag, value: int | Fraction | str) -> tuple[int, int, int, bytes]:
    """A tag's number, type, count and bytes."""
    if isinstance(value, Fraction):
        code = "<ii" if tag.type == _SIGNED_RATIONAL else "<II"
        return tag.number, tag.type, 1, struct.pack(code, value.numerator, value.denominator)
    if isinstance(value, int):
        return tag.number, tag.type, 1, struct.pack("<H", value)
    text = value.encode("ascii") + b"\0"
    return tag.number, tag.type, len(text), text.ljust(len(text) + len(text) % 2, b"\0")
