"""A folder into which photos are put while the run goes on: when to look again, and which files are complete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from visard_errors import UnreadablePhoto
from visard_errors.extras import needs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from visard_folder.journal import Stamp
    from visard_folder.walk import Found

SETTLE_S = 2.0  # a file that has not changed for so long is complete: nobody says so otherwise
_LOOK_S = 60.0  # at the latest: network drives tell of no changes
_POLL_MS = 500


class DropFolder:
    """Watches a folder from now on. For one thread at a time.

    A file that is being written changes its size or its time. One whose last change is old enough is taken at once, as
    after a move; the clock of another machine may be wrong, so one that merely stays the same is taken as well.

    Args:
        source: an existing folder.

    Raises:
        MissingExtra: the library that watches is not installed.
        UnreadablePhoto: the system cannot watch the folder.
    """

    def __init__(self, source: Path) -> None:
        with needs("folder", "watching a folder"):
            from watchfiles import watch

        self._source = source
        self._changes = watch(
            source, watch_filter=None, rust_timeout=_POLL_MS, yield_on_timeout=True, ignore_permission_denied=True
        )
        self._growing: dict[str, tuple[Stamp, float]] = {}  # what this look found unsettled: its stamp, since when
        self._before: dict[str, tuple[Stamp, float]] = {}  # and the look before
        self._failed: dict[str, Stamp | None] = {}
        self._changed()  # what comes from here on is not missed

    def ready(self, found: Found) -> bool:
        """Whether a file can be taken: it is complete, and has not failed as it is."""
        if found.path in self._failed and self._failed[found.path] == found.stamp:
            return False
        if found.stamp is None or time.time() - found.stamp[1] / 1e9 >= SETTLE_S:
            return True
        now = time.monotonic()
        stamp, since = self._before.get(found.path, (None, now))
        if stamp == found.stamp and now - since >= SETTLE_S:
            return True
        self._growing[found.path] = (found.stamp, since if stamp == found.stamp else now)
        return False

    def failed(self, path: str, stamp: Stamp | None) -> None:
        """Take this file again only when it has changed."""
        self._failed[path] = stamp

    def wait(self, anything: Callable[[], bool], waiting: Callable[[], None]) -> bool:
        """Wait until there is something to do.

        Args:
            anything: looks whether there is.
            waiting: called first.

        Returns:
            False where Ctrl-C, or a signal whose handler raises, ended the waiting.
        """
        try:
            waiting()
            while True:
                look_at = time.monotonic() + (SETTLE_S if self._growing else _LOOK_S)
                while time.monotonic() < look_at:
                    if self._changed():
                        look_at = min(look_at, time.monotonic() + SETTLE_S)
                self._before, self._growing = self._growing, {}
                if anything():
                    return True
        except (KeyboardInterrupt, SystemExit):  # watchfiles makes the one of the other
            return False

    def _changed(self) -> bool:
        """Whether anything has changed, now or within half a second."""
        try:
            return bool(next(self._changes))
        except (OSError, RuntimeError) as error:  # no watches left, for example
            raise UnreadablePhoto(f"cannot watch '{self._source}' ({error})") from None
