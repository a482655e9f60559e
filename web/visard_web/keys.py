"""API keys: a file of their SHA-256 hashes, one `HASH NAME` a line, as `docker/gateway/new-key` writes it too.

The keys themselves stand nowhere. They are random and long, so that a plain hash is enough.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from visard_errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{64})\s+([a-z0-9-]{1,64})\s*;?")


class Keys:
    """The callers that are let in.

    Args:
        path: the file; empty lines and those that begin with # do not count.

    Raises:
        DataError: it cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the API keys '{path}' ({error})") from None
        self._names: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise DataError(f"'{path}', line {number}: a line is the SHA-256 of a key in hexadecimal and a name")
            self._names[match[1].encode()] = match[2]
        if not self._names:
            raise DataError(f"'{path}' has no API key: nobody could come in")

    def name(self, key: str) -> str | None:
        """Say whose key it is, in a time that does not depend on how nearly it is one."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest().encode()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def presented_key(headers: Mapping[str, str], *, basic: bool) -> str | None:
    """Take a key from a request: `X-API-Key`, `Authorization: Bearer`, or the password of `Basic` where allowed."""
    if key := headers.get("x-api-key"):
        return key
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
