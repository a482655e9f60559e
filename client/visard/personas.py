"""Who becomes whom: draws the numbers that choose a persona for each face of a photo.

A number is drawn without looking at the face: nothing of it can be read from the persona, nor from the number. Numbers
and keys are neither logged nor stored, and are in no result.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

_NUMBERS = 2**31  # 0..2³¹ − 1: what an INT32 holds, its negatives left out
_PURPOSE = b"visard persona"  # the same key used for something else gives other bits


def draw(count: int, key: str | bytes | None = None) -> tuple[int, ...]:
    """Draw numbers for the faces of one photo, all different.

    Args:
        count: how many faces there are.
        key: the same key gives the same numbers, everywhere and always; a str counts as UTF-8. By default every call
            draws anew.

    Returns:
        Consecutive numbers in 0..2³¹ − 1, with 0 after the last.

    Example:
        >>> draw(2, "a key that nobody guesses") == draw(2, "a key that nobody guesses")
        True
    """
    base = secrets.randbelow(_NUMBERS) if key is None else _base(key)
    return tuple((base + index) % _NUMBERS for index in range(count))


def _base(key: str | bytes) -> int:
    """First 31 bits of BLAKE2b (RFC 7693) over the key, personalised."""
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return int.from_bytes(blake2b(data, digest_size=4, person=_PURPOSE).digest(), "big") >> 1
