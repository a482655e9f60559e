"""Photos of the page, kept in memory for a few minutes under names that nobody can guess.

Everybody who knows the name may see the photo; there is no list of names. Nothing is written anywhere: when the process
ends, all is forgotten. The oldest go first where there are too many.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from visard_web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from visard import Found, Result
    from visard.options import Choice

_NAME_BYTES = 24


@dataclass(kw_only=True, eq=False)
class Kept:
    """One photo, and what became of it last.

    Attributes:
        found: the photo and its faces.
        expires: when it is forgotten, by the store's clock.
        result: crops and scores, without the blended photo, which is made of both when it is asked for.
        choices: that led to it.
    """

    found: Found = field(repr=False)
    expires: float
    result: Result | None = field(default=None, repr=False)
    choices: tuple[Choice, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its pixels."""
        faces = () if self.result is None else self.result.faces
        crops = (*self.found.aligned.values(), *(crop for face in faces for crop in (face.aligned, face.swapped)))
        return self.found.photo.nbytes + sum(crop.nbytes for crop in crops)


class Store:
    """Keeps photos.

    Args:
        keep_s: for how long.
        most: how many.
        most_bytes: how many bytes of pixels; the newest photo is kept in any case.
        clock: seconds that never go back.
    """

    def __init__(
        self, *, keep_s: float, most: int, most_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s, self._most, self._most_bytes, self._clock = keep_s, most, most_bytes, clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes of all pixels."""
        return sum(kept.size for kept in self._kept.values())

    def add(self, found: Found) -> str:
        """Keep a photo and return its name."""
        name = secrets.token_urlsafe(_NAME_BYTES)
        self._kept[name] = Kept(found=found, expires=self._clock() + self._keep_s)
        self.make_room()
        return name

    def get(self, name: str) -> Kept:
        """Find a photo.

        Raises:
            Problem: 404, it was forgotten or never there.
        """
        self.make_room()
        kept = self._kept.get(name)
        if kept is None:
            raise Problem(404, "Forgotten", "this photo is not here any more: choose it again")
        return kept

    def forget(self, names: Iterable[str]) -> None:
        """Forget photos; those that are not there are forgotten already."""
        for name in names:
            self._kept.pop(name, None)

    def make_room(self) -> None:
        """Forget what is too old, and the oldest of what is too much."""
        now = self._clock()
        self.forget([name for name, kept in self._kept.items() if kept.expires <= now])
        while len(self._kept) > self._most or (len(self._kept) > 1 and self.size > self._most_bytes):
            self._kept.popitem(last=False)
