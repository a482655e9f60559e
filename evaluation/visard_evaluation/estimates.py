"""Figures with the interval that their sample allows: shares, means, medians, and differences of paired shares.

All take their values for independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from visard_errors import MissingExtra

try:
    from scipy import stats
except ImportError as error:
    raise MissingExtra("evaluate", "an evaluation") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95

_FEWEST = 5  # values below which a mean has no interval: of two, it would reach over the whole scale and beyond


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where the sample allows none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None where there is no interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def share(hits: Sequence[bool]) -> Estimate:
    """The share of hits and Wilson's score interval."""
    if not len(hits):
        return Estimate(None)
    value, low, high = _wilson(sum(map(bool, hits)), len(hits))
    return Estimate(rounded(value), rounded(low), rounded(high))


def mean(values: Sequence[float]) -> Estimate:
    """The mean and Student's interval, cut off at 0, below which none of our quantities can lie."""
    if not len(values):
        return Estimate(None)
    middle = float(np.mean(values))
    if len(values) < _FEWEST:
        return Estimate(rounded(middle))
    half = float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(rounded(middle), rounded(max(0.0, middle - half)), rounded(middle + half))


def median(values: Sequence[float]) -> Estimate:
    """The median and the interval between order statistics (`scipy.stats.quantile_test`)."""
    if not len(values):
        return Estimate(None)
    middle = float(np.median(values))
    if len(values) < _FEWEST:
        return Estimate(rounded(middle))
    interval = stats.quantile_test(values, q=middle, p=0.5).confidence_interval(CONFIDENCE)
    low, high = (None if math.isnan(end) else rounded(end) for end in (interval.low, interval.high))
    return Estimate(rounded(middle), low, high)


def difference(hits: Sequence[bool], control: Sequence[bool]) -> Estimate:
    """The share of hits minus that of a control on the same photos, −1..1.

    Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998, p. 2635, method 10): it
    keeps its width where all photos agree, unlike the mean of differences.

    Args:
        hits: by photo.
        control: by photo, in the same order.
    """
    n = len(hits)
    if not n:
        return Estimate(None)
    both = sum(a and b for a, b in zip(hits, control, strict=True))
    first, second = sum(map(bool, hits)), sum(map(bool, control))
    p1, low1, high1 = _wilson(first, n)
    p2, low2, high2 = _wilson(second, n)
    neither = n - first - second + both
    agreement: float = both * neither - (first - both) * (second - both)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0)  # Newcombe's continuity correction
    margins = math.sqrt(first * (n - first) * second * (n - second))
    phi = agreement / margins if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = p1 - p2
    return Estimate(
        rounded(value),
        rounded(value - reach(p1 - low1, high2 - p2)),
        rounded(value + reach(high1 - p1, p2 - low2)),
    )


def rounded(value: float) -> float:
    """Four decimals: more than any sample here can support."""
    return round(float(value), 4)


def _wilson(hits: int, n: int) -> tuple[float, float, float]:
    result = stats.binomtest(hits, n)
    interval = result.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(result.statistic), float(interval.low), float(interval.high)
