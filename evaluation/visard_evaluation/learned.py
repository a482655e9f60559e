"""An attacker who learns from other people's pairs how anonymisation moves a descriptor, and moves it back.

Ridge regression from anonymised to clear descriptors, fitted to the pairs of all folds but one and tried on that one:
nobody who is searched for was learned from. How strongly it is held back, and whether it maps the descriptor or
corrects it, is chosen by how well a search goes among the people it learns from: with few of them the regression can
only answer with mixtures of their own faces, which is near in squares and finds nobody else. It works on
descriptors, never on pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard_evaluation.folds import folds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# Relative to the mean squared singular value; the first leaves descriptors as they are, except for the mean.
_PENALTIES = (1e9, *10.0 ** np.arange(3, -4, -1))


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
        from (`visard_evaluation.folds.FEWEST_PEOPLE`).
    """
    folds = folds_of(people)
    if folds is None:
        return None
    hits = np.zeros(len(probes), bool)
    names = np.asarray(people)
    for fold in np.unique(folds):
        known, tried = folds != fold, folds == fold
        attacker = learn(probes[known], gallery[known], names[known], folds[known])
        hits[tried] = _ranks(attacker, probes[tried], gallery, names[tried], names) == 1
    return tuple(map(bool, hits))


def learn(
    x: NDArray[np.float64], y: NDArray[np.float64], people: NDArray[np.str_], folds: NDArray[np.int_]
) -> LinearMap:
    """Fit a map from x to y whose penalty finds people best across folds.

    Args:
        x: (N, D).
        y: (N, D).
        people: (N,) who each is.
        folds: (N,), at least two different ones.
    """
    candidates = [(penalty, kept) for penalty in _PENALTIES for kept in (1.0, 0.0)]
    found = np.zeros(len(candidates))
    for fold in np.unique(folds):
        known, tried = folds != fold, folds == fold
        for index, each in enumerate(_fit(x[known], y[known], candidates)):
            found[index] += (1 / _ranks(each, x[tried], y, people[tried], people)).sum()
    return _fit(x, y, [candidates[int(found.argmax())]])[0]


def _ranks(
    attacker: LinearMap,
    probes: NDArray[np.float64],
    gallery: NDArray[np.float64],
    who: NDArray[np.str_],
    people: NDArray[np.str_],
) -> NDArray[np.int_]:
    """Where in the list of everybody in the gallery each probe's person comes, from 1."""
    directions = [_unit(each - attacker.mean_y) for each in (attacker(probes), gallery)]
    alike = directions[0] @ directions[1].T
    own = who[:, None] == people[None, :]
    best = np.where(own, alike, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int_] = 1 + (np.where(own, -np.inf, alike) >= best).sum(axis=1)
    return ranks


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
