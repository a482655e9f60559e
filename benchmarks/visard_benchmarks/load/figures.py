"""What a load measurement says: percentiles, rates, goodput and stability, as pure functions of what was observed.

Nothing here knows about servers or clocks. Three choices keep the figures honest:

* Latency counts from the moment at which a request was *due*, not from when it was sent. A load generator that waits
  for a stalled server sends less, and would otherwise leave out just the requests that had to wait longest.
* Latency is taken over every request that was due in the measured time, however late its answer came. Rates count what
  came back within that time.
* A percentile is a latency that occurred (nearest rank, rounded up), never an interpolation between two.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

FLIPPED = "flipped"  # the face came back and the classifier calls it the other gender
UNFLIPPED = "not flipped"  # it came back and is still called what it was
ANSWERED = (FLIPPED, UNFLIPPED)  # every other outcome is the name of an error class

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
TOLERANCE = 0.1  # of the stability rule
WINDOWS = 3


class Sample(NamedTuple):
    """One request; moments in seconds from the start of the load."""

    due_s: float
    sent_s: float
    done_s: float
    outcome: str

    @property
    def latency_s(self) -> float:
        """From when it was due to its answer."""
        return self.done_s - self.due_s

    @property
    def answered(self) -> bool:
        """Whether the face came back, flipped or not."""
        return self.outcome in ANSWERED


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How a load is cut: a warm-up that does not count, then windows of equal length that do."""

    warm_up_s: float
    window_s: float

    @property
    def end_s(self) -> float:
        """When no more requests are due."""
        return self.warm_up_s + WINDOWS * self.window_s

    @property
    def measured_s(self) -> float:
        """Length of all windows."""
        return WINDOWS * self.window_s

    def edges(self) -> list[tuple[float, float]]:
        """Start and end of each window."""
        moments = [self.warm_up_s + index * self.window_s for index in range(WINDOWS + 1)]
        return list(pairwise(moments))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One load as it went, of the several repeats of it."""

    timing: Timing
    samples: Sequence[Sample]
    open_loop: bool


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one load over all its turns.

    Rates are medians of the turns, per second; latencies pool all turns, in milliseconds.

    Attributes:
        offered_per_s: requests that were due.
        achieved_per_s: faces that came back, flipped or not.
        good_per_s: faces that came back flipped and within the deadline: the goodput.
        latency_ms: `PERCENTILES` of the faces that came back.
        refused_ms: the same of the requests that failed; empty where none did.
        outcomes: how many requests ended how.
        lag_ms: 99th percentile of how late requests were sent. Where it is not small against the latency, the load
            generator was the bottleneck.
        samples: how many latencies the percentiles stand on.
        stable_turns: in how many of the `turns` the windows agreed.
        achieved_by_turn: what `achieved_per_s` is the median of; so for `good_by_turn`.
    """

    offered_per_s: float
    achieved_per_s: float
    good_per_s: float
    latency_ms: dict[str, float]
    refused_ms: dict[str, float]
    outcomes: dict[str, int]
    lag_ms: float
    samples: int
    turns: int
    stable_turns: int
    achieved_by_turn: tuple[float, ...]
    good_by_turn: tuple[float, ...]

    @property
    def answered_share(self) -> float:
        """Share of the requests that got their face back."""
        total = sum(self.outcomes.values())
        return sum(self.outcomes.get(outcome, 0) for outcome in ANSWERED) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything, rounded, ready for JSON."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """Smallest value that is not below `percent` of all; nan where there are none."""
    if not values:
        return math.nan
    # By hand: numpy's "inverted_cdf" takes 99.9 % of 1000 for 999.0000000000001 and gives the next value.
    rank = math.ceil(round(percent / 100 * len(values), 9))
    return sorted(values)[max(0, rank - 1)]


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """`PERCENTILES` of latencies, in milliseconds; empty where there are none."""
    return {name: percentile(seconds, percent) * 1000 for name, percent in PERCENTILES.items()} if seconds else {}


def agree(values: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    """Whether all values lie within `tolerance` of their mean; no values, or zeros, do not."""
    mean = sum(values) / len(values) if values else 0.0
    return mean > 0 and all(abs(value - mean) <= tolerance * mean for value in values)


def stable(turn: Turn) -> bool:
    """Whether the load had settled: its windows agree within `TOLERANCE`.

    In a closed loop, in how many faces came back. In an open loop arrivals themselves vary, so what was finished in
    each window, by an answer or a refusal, is held against what was due in it: a queue that grows does not pass.
    """
    finished = [sum(start <= each.done_s < end for each in turn.samples) for start, end in turn.timing.edges()]
    if not turn.open_loop:
        return agree(finished)
    due = [sum(start <= each.due_s < end for each in turn.samples) for start, end in turn.timing.edges()]
    return all(
        arrived > 0 and abs(done - arrived) <= TOLERANCE * arrived for done, arrived in zip(finished, due, strict=True)
    )


def offered(turn: Turn) -> float:
    """Requests per second that were due."""
    return len(_due(turn)) / turn.timing.measured_s


def achieved(turn: Turn) -> float:
    """Faces per second that came back."""
    return sum(each.answered for each in _done(turn)) / turn.timing.measured_s


def goodput(turn: Turn, deadline_s: float) -> float:
    """Faces per second that came back flipped, within `deadline_s` of when they were due."""
    good = sum(each.outcome == FLIPPED and each.latency_s <= deadline_s for each in _done(turn))
    return good / turn.timing.measured_s


def ideal_latencies_s(turn: Turn, capacity_per_s: float, servers: int) -> list[float]:
    """Latency of every measured request in a queue without any loss: the floor under an open loop.

    First come, first served by `servers` that take `servers / capacity_per_s` seconds for each request, always the same
    (M/D/c), at the very moments at which this turn's requests were due. Waiting that is in here is the arrivals' doing.
    """
    free_s = [0.0] * servers  # when each of them is done with what it has
    latencies = []
    for sample in turn.samples:
        done_s = max(sample.due_s, heapq.heappop(free_s)) + servers / capacity_per_s
        heapq.heappush(free_s, done_s)
        if turn.timing.warm_up_s <= sample.due_s < turn.timing.end_s:
            latencies.append(done_s - sample.due_s)
    return latencies


def figures(turns: Sequence[Turn], deadline_s: float) -> Figures:
    """Sum up all turns of one load."""
    due = [each for turn in turns for each in _due(turn)]
    answered = [each.latency_s for each in due if each.answered]
    achieved_by_turn = tuple(achieved(turn) for turn in turns)
    good_by_turn = tuple(goodput(turn, deadline_s) for turn in turns)
    return Figures(
        offered_per_s=median(offered(turn) for turn in turns),
        achieved_per_s=median(achieved_by_turn),
        good_per_s=median(good_by_turn),
        latency_ms=percentiles_ms(answered),
        refused_ms=percentiles_ms([each.latency_s for each in due if not each.answered]),
        outcomes=dict(Counter(each.outcome for each in due)),
        lag_ms=percentile([each.sent_s - each.due_s for each in due], 99) * 1000,
        samples=len(answered),
        turns=len(turns),
        stable_turns=sum(map(stable, turns)),
        achieved_by_turn=achieved_by_turn,
        good_by_turn=good_by_turn,
    )


def _due(turn: Turn) -> list[Sample]:
    return [each for each in turn.samples if turn.timing.warm_up_s <= each.due_s < turn.timing.end_s]


def _done(turn: Turn) -> list[Sample]:
    return [each for each in turn.samples if turn.timing.warm_up_s <= each.done_s < turn.timing.end_s]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, tuple) else value
