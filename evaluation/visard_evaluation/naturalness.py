"""How far anonymised faces lie from real ones as a whole: the kernel distance of two sets of features.

KID (Bińkowski et al., Demystifying MMD GANs, ICLR 2018): the squared maximum mean discrepancy under the kernel
(x·y/D + 1)³, unbiased on small samples, so that it can fall below zero. A photo and its own result share hair and
place, which would make the two sets look more alike than they are: only pairs of different people are compared.
The features can come from any network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from visard_evaluation.estimates import CONFIDENCE, Estimate, rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

_FEWEST_PEOPLE = 10
_SPLITS = 50


def kernel_distance(originals: NDArray[np.float64], results: NDArray[np.float64], people: Sequence[str]) -> Estimate:
    """Compare results with originals; the interval is the jackknife's over people.

    Args:
        originals: (N, D) features.
        results: (N, D).
        people: who is in each photo; fewer than ten give no figure.
    """
    names, who = np.unique(people, return_inverse=True)
    if len(names) < _FEWEST_PEOPLE:
        return Estimate(None)
    others = who[:, None] != who[None, :]
    signs = ((originals, originals, 1), (results, results, 1), (results, originals, -2))
    discrepancy = np.where(others, sum(sign * _kernel(a, b) for a, b, sign in signs), 0)

    def per_person(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """What all pairs with one person add up to; pairs of a person with itself are none."""
        return np.bincount(who, matrix.sum(axis=0) + matrix.sum(axis=1)).astype(np.float64)

    total, pairs = discrepancy.sum(), others.sum()
    value = total / pairs
    without = (total - per_person(discrepancy)) / (pairs - per_person(others.astype(float)))
    m = len(names)
    error = np.sqrt((m - 1) / m * np.square(without - without.mean()).sum())
    half = error * stats.t.ppf((1 + CONFIDENCE) / 2, m - 1)
    return Estimate(rounded(value), rounded(value - half), rounded(value + half))


def reference_distance(originals: NDArray[np.float64], people: Sequence[str]) -> Estimate:
    """Compare one half of the originals with the other: how far apart real photos of different people lie.

    The mean over random halvings of the people, and the range that holds 95 % of them.
    """
    names, who = np.unique(people, return_inverse=True)
    if len(names) < _FEWEST_PEOPLE:
        return Estimate(None)
    kernel = _kernel(originals, originals)
    rng, values = np.random.default_rng(0), []
    for _ in range(_SPLITS):
        first = np.isin(who, rng.permutation(len(names))[: len(names) // 2])
        a, b = np.flatnonzero(first), np.flatnonzero(~first)
        within = [_mean_of_pairs(kernel[np.ix_(half, half)], who[half]) for half in (a, b)]
        values.append(sum(within) - 2 * kernel[np.ix_(a, b)].mean())
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(rounded(float(np.mean(values))), rounded(low), rounded(high))


def _mean_of_pairs(kernel: NDArray[np.float64], who: NDArray[np.int_]) -> float:
    return float(kernel[who[:, None] != who[None, :]].mean())


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel
