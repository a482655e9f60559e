"""Divides people into folds, so that an attacker is tested only on people from whom it did not learn."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDS = 5
FEWEST_PEOPLE = 2 * FOLDS  # below two people a fold, what an attacker learns says nothing about one with more


def folds_of(people: Sequence[str], count: int = FOLDS) -> NDArray[np.int_] | None:
    """Deal people to folds in the order of a hash of their names: (N,) fold of each photo, 0..count − 1.

    The same people fall into the same folds whatever their order; all photos of one are in one fold. None where there
    are fewer than `FEWEST_PEOPLE`.
    """
    order = sorted(set(people), key=lambda person: hashlib.blake2b(person.encode()).digest())
    if len(order) < FEWEST_PEOPLE:
        return None
    fold = {person: index % count for index, person in enumerate(order)}
    return np.array([fold[person] for person in people])
