"""What an operator decides, and the limits that follow from it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of one web server, and who may use it.

    Attributes:
        max_bytes: largest upload; refused before it is read where its length is announced, else while it is read.
        max_pixels: largest photo; refused before it is decoded.
        keep_s: how long the page's photos are kept in memory.
        keep_photos: how many of them at most; the oldest go first.
        keep_bytes: likewise, the bytes of their pixels.
        in_work: photos that are decoded and worked on at once: what bounds the memory.
        waiting: requests that may wait for their turn beyond those; each holds its upload. More are refused.
        wait_s: how long they wait at most.
        read_s: how long a caller may take to send a photo, and to take each piece of an answer.
        rate: uploads per caller, and as many swaps of the page, in the notation of the `limits` library; None for any.
        keys: file with the SHA-256 of the API keys that are let in; None lets everybody in.
        hosts: further names under which the server may be called; see `visard_web.middleware`.
    """

    max_bytes: int = 20 * MEBIBYTE
    max_pixels: int = 50_000_000
    keep_s: float = 300.0
    keep_photos: int = 200
    keep_bytes: int = 1024 * MEBIBYTE
    in_work: int = 6
    waiting: int = 24
    wait_s: float = 30.0
    read_s: float = 30.0
    rate: str | None = "60/minute"
    keys: Path | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("max_bytes", "max_pixels", "keep_s", "keep_photos", "keep_bytes", "in_work", "wait_s", "read_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.waiting < 0:
            raise ValueError(f"waiting must not be negative, not {self.waiting}")
        if self.rate is not None:
            from limits import parse

            try:
                parse(self.rate)
            except ValueError:
                raise ValueError(f"the rate is a number per time, such as 60/minute, not {self.rate!r}") from None
