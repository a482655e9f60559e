"""The file of figures: a line of JSON each, on the disk as soon as the figure is known."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 -- makes the next lines' packages importable
from visard_benchmarks.gpu.reports import append, first_line, read_lines

FILE = "figures.jsonl"


class Figures:
    """What one part has found out.

    Args:
        folder: holds the file of all parts.
        part: whose lines these are.
        started: when the benchmark began, as `time.monotonic` counts.
        until: when the part must have ended.
    """

    def __init__(self, folder: Path, part: str, started: float, until: float) -> None:
        self.path = folder / FILE
        self.until = until
        self._part, self._started = part, started

    def add(self, **line: Any) -> None:
        """Write a line, and print it."""
        whole = {"part": self._part, "at_s": round(time.monotonic() - self._started, 2), **line}
        append(self.path, whole)
        print(json.dumps(whole), flush=True)

    def failed(self, error: BaseException, **which: Any) -> None:
        """Write why a figure is missing."""
        self.add(**which, failed=first_line(error))

    def has_time(self, seconds: float, **which: Any) -> bool:
        """Whether so much time is left; what is left out for want of it is written."""
        left = self.until - time.monotonic()
        if left < seconds:
            self.add(**which, failed=f"left out: {max(left, 0):.0f} s left of this part's time, {seconds:.0f} needed")
        return left >= seconds

    def lines(self, part: str) -> list[dict[str, Any]]:
        """What another part has written."""
        return [line for line in read_lines(self.path) if line["part"] == part]
