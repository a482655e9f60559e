"""JPEG files without their end marker, which every viewer shows: whether anything but that marker is missing."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_END = b"\xff\xd9"
# Bits for whoever still waits for some; no byte is 0xFF, which would be a marker. Longer than any tables.
_FILLER = b"\x55\xaa\x12\x93" * 2**15

# ISO/IEC 10918-1, B.1.1.3: what is neither a stuffed byte nor a restart within a scan.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3}
_SCAN = 0xDA
_COEFFICIENTS = range(64)


def with_end(data: bytes, decode: Callable[[bytes], NDArray[np.uint8]]) -> bytes | None:
    """Put the end marker to a JPEG file that lacks nothing else.

    Every scan has to be there to its last bit. A decoder puts grey, or a coarser picture, where there are none; so what
    is missing is found by decoding twice, with nothing and with other bits in the place of what may be missing: where
    both give the same picture, no pixel waited for them.

    Args:
        data: the file, which a decoder refused.
        decode: gives the pixels of a file, or raises whatever it likes.

    Returns:
        The whole file, None where more than the marker is missing.
    """
    data = data.rstrip(b"\xff")  # half a marker
    if not _has_all_scans(data):
        return None
    whole = data + _END
    try:
        same = np.array_equal(decode(whole), decode(data + _FILLER + _END))
    except Exception:  # whatever a decoder raises at hostile bytes
        return None
    return whole if same else None


def _has_all_scans(data: bytes) -> bool:
    """Whether each component's 64 coefficients were sent to their last bit; a progressive file sends them in parts."""
    missing: dict[int, set[int]] = {}
    position = 2
    while (marker := _MARKER.search(data, position)) is not None:
        start = marker.end()
        position = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        segment = data[start + 2 : position]
        if marker[1][0] in _FRAMES:
            missing = {component: set(_COEFFICIENTS) for component in segment[6::3]}
        elif marker[1][0] == _SCAN and segment:
            components = segment[1 : 1 + 2 * segment[0] : 2]
            first, last, bits = segment[-3:] if len(segment) >= 4 else (0, 0, 0xFF)
            if bits & 0x0F == 0:
                for component in components:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())
