"""Shows the progress of a stage: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Item = TypeVar("Item")

LINE_EVERY_S = 30.0  # where a bar cannot be drawn, such as in a file


class Progress:
    """A context in which something is done piece by piece.

    Args:
        what: is done, as a heading.
        total: how many pieces there are.
        done: how many were done before.
        console: where to say it; standard error by default.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, console: Console | None = None) -> None:
        self._what, self._total, self._done = what, total, done
        self._console = console or Console(stderr=True)
        self._told = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
        )
        drawn = self._console.is_interactive or self._console.is_jupyter
        self._bar = Bar(*columns, console=self._console, disable=not drawn)
        self._task = self._bar.add_task(what, total=total, completed=done, told="")
        self._drawn, self._stack = drawn, ExitStack()

    def __enter__(self) -> Progress:
        self._stack.enter_context(self._bar)
        self._last = time.monotonic()
        return self

    def advance(self, told: str | None = None) -> None:
        """Count one more piece.

        Args:
            told: what to show besides, such as a loss; by default the last value stays.
        """
        self._done += 1
        self._told = self._told if told is None else told
        self._bar.update(self._task, completed=self._done, told=self._told)
        if not self._drawn and time.monotonic() - self._last >= LINE_EVERY_S:
            self._say()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if not self._drawn:
            self._say()

    def _say(self) -> None:
        self._last = time.monotonic()
        say(self._console, f"{self._what}: {self._done} of {self._total}" + f" · {self._told}" * bool(self._told))


def track(items: Iterable[Item], what: str, total: int, console: Console | None = None) -> Iterator[Item]:
    """Yield items and say how many of them are done."""
    with Progress(what, total, console=console) as progress:
        for item in items:
            yield item
            progress.advance()


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
