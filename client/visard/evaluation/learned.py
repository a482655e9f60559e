"""An attacker who learns from other people's pairs how anonymisation moves a descriptor, and moves it back.

Ridge regression from anonymised to clear descriptors, fitted to the pairs of all folds but one and tried on that one:
nobody who is searched for was learned from. How strongly it is held back, and whether it maps the descriptor or
corrects it, is chosen among the people it learns from. It knows nothing about pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard.evaluation.folds import folds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_PENALTIES = 10.0 ** np.arange(-3, 4)  # relative to the mean squared singular value


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """x goes to mean_y + kept·(x − mean_x) + (x − mean_x)·weights."""

    mean_x: NDArray[np.float64] = field(repr=False)
    mean_y: NDArray[np.float64] = field(repr=False)
    weights: NDArray[np.float64] = field(repr=False)
    kept: float

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (N, D) descriptors."""
        centred = x - self.mean_x
        mapped: NDArray[np.float64] = self.mean_y + self.kept * centred + centred @ self.weights
        return mapped


def search_learned(
    probes: NDArray[np.float64], gallery: NDArray[np.float64], people: Sequence[str]
) -> tuple[bool, ...] | None:
    """Let the attacker look every probe up.

    The search compares directions from the mean of the clear descriptors it knows: a map that is unsure stays near that
    mean, where plain distance would find the most average person.

    Args:
        probes: (N, D), probe i made of person i.
        gallery: (N, D), original i of person i.
        people: who that is.

    Returns:
        Whether the nearest original is of the probe's person, by photo; None where there are too few people to learn
        from (`visard.evaluation.folds.FEWEST_PEOPLE`).
    """
    folds = folds_of(people)
    if folds is None:
        return None
    hits = np.zeros(len(probes), bool)
    names = np.asarray(people)
    for fold in np.unique(folds):
        known, tried = folds != fold, folds == fold
        attacker = learn(probes[known], gallery[known], folds[known])
        directions = [_unit(each - attacker.mean_y) for each in (attacker(probes[tried]), gallery)]
        nearest = (directions[0] @ directions[1].T).argmax(axis=1)
        hits[tried] = names[nearest] == names[tried]
    return tuple(map(bool, hits))


def learn(x: NDArray[np.float64], y: NDArray[np.float64], folds: NDArray[np.int_]) -> LinearMap:
    """Fit a map from x to y whose penalty predicts best across folds.

    Args:
        x: (N, D).
        y: (N, D).
        folds: (N,), at least two different ones.
    """
    candidates = [(penalty, kept) for penalty in _PENALTIES for kept in (0.0, 1.0)]
    errors = np.zeros(len(candidates))
    for fold in np.unique(folds):
        known, tried = folds != fold, folds == fold
        for index, each in enumerate(_fit(x[known], y[known], candidates)):
            errors[index] += np.square(each(x[tried]) - y[tried]).sum()
    return _fit(x, y, [candidates[int(errors.argmin())]])[0]


def _fit(x: NDArray[np.float64], y: NDArray[np.float64], candidates: Sequence[tuple[float, float]]) -> list[LinearMap]:
    """Fit ridge regressions of different penalties by one singular value decomposition."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - mean_x, full_matrices=False)
    maps = []
    for penalty, kept in candidates:
        target = (y - mean_y) - kept * (x - mean_x)
        shrunk = s / (s**2 + penalty * np.mean(s**2) + np.finfo(float).tiny)
        maps.append(LinearMap(mean_x=mean_x, mean_y=mean_y, weights=(vt.T * shrunk) @ (u.T @ target), kept=kept))
    return maps


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.maximum(lengths, np.finfo(float).tiny)
    return unit
