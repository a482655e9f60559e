"""How far many photos have come, for a caller who wants to show it."""

from __future__ import annotations

import logging
from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visard.result import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from visard.result import Outcome

_LOG = logging.getLogger("visard")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far many photos have come.

    Attributes:
        done: photos whose outcome is there, the failed ones among them.
        failed: those that have no result.
        total: all photos; None where nobody knows, because they come from an iterator.
    """

    done: int
    failed: int
    total: int | None


class Reporter:
    """Counts outcomes as they pass and says so to a caller's function, whose errors are no photo's."""

    def __init__(self, tell: Callable[[Progress], object] | None, photos: Iterable[Any]) -> None:
        self._tell = tell
        self._total = len(photos) if isinstance(photos, Sized) else None
        self._done = self._failed = 0

    def __call__(self, outcome: Outcome) -> Outcome:
        """Count one, and give it back."""
        self._done += 1
        self._failed += isinstance(outcome, Failed)
        if self._tell is not None:
            try:
                self._tell(Progress(done=self._done, failed=self._failed, total=self._total))
            except Exception:
                self._tell = None
                _LOG.exception("the progress function failed and is not called again; the photos go on")
        return outcome
