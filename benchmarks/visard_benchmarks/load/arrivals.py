"""When requests are due in an open loop: a Poisson process, as callers who know nothing of each other make it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def poisson_schedule(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Draw the moments at which requests are due.

    Args:
        rate_per_s: how many come per second on average.
        seconds: length of the schedule.
        seed: the same seed gives the same schedule.

    Returns:
        (N,) ascending seconds from the start, all below `seconds`. N varies as a Poisson number does: its standard
        deviation is the root of its mean.

    Raises:
        ValueError: the rate or the length is not positive.
    """
    if rate_per_s <= 0 or seconds <= 0:
        raise ValueError(f"rate and length must be positive, not {rate_per_s:g}/s over {seconds:g} s")
    rng = np.random.default_rng(seed)
    mean = rate_per_s * seconds
    enough = int(mean + 10 * mean**0.5 + 10)  # ten standard deviations more than are needed
    moments: NDArray[np.float64] = np.cumsum(rng.exponential(1 / rate_per_s, enough))
    return np.asarray(moments[moments < seconds])


def mixture(share: float, count: int, seed: int) -> NDArray[np.bool_]:
    """Draw which of `count` requests belong to the second kind, where `share` of all do, in no order."""
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies in 0..1, not at {share:g}")
    second = np.zeros(count, np.bool_)
    second[: round(share * count)] = True
    return np.random.default_rng(seed).permutation(second)
