"""Logs as JSON lines on standard error: route, status and duration of each request.

No pixels, no file names, no names of kept photos, no addresses of callers. Of an unexpected exception it tells the kind
and the place in the code, not the message, which may quote what was sent.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

LOGGER = logging.getLogger("visard_web")

_QUIET = ("python_multipart", "PIL", "asyncio", "uvicorn.access")  # whose messages may quote what was sent


class JsonLines(logging.Formatter):
    """One record, one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Write time, level and event, the fields given as `extra={"fields": …}`, and where an exception arose."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


def set_up() -> None:
    """Send this program's records to standard error as JSON lines, the web server's own among them."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("visard_web", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
