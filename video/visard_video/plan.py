"""What is drawn in every frame, steady in time: measured places smoothed without lag, and no flashing covers.

Two passes over a clip allow a filter that looks ahead: that of Savitzky and Golay (1964), a parabola through seven
frames. A face is swapped where it is clear, and through short gaps between clear frames, where its place is
interpolated; elsewhere its head is covered.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import savgol_filter

from visard_preprocess.geometry import Quad

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from visard.policy import Reason
    from visard_preprocess.geometry import Box
    from visard_video.tracks import Seen, Track

_WINDOW, _DEGREE = 7, 2  # frames, and the polynomial through them
_MOST_GAP = 5  # frames without landmarks that a swap goes on through
_SHORTEST = 5  # frames: a shorter swap between covers would flash


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What becomes of one face in one frame.

    Attributes:
        track: number of its track.
        box: around the face, in pixels of the frame; covers its neighbours' in time.
        quad: where its crop lies; None where it is covered.
        reason: why it is covered; None where it is swapped.
    """

    track: int
    box: Box
    quad: Quad | None
    reason: Reason | None


def plan(track: Track) -> dict[int, Step]:
    """Say what becomes of a track's face: frame → step, in their order."""
    steps: dict[int, Step] = {}
    for _, stretch in groupby(enumerate(track.seen), lambda item: item[1] - item[0]):  # frames that follow each other
        steps |= _plan(track, [frame for _, frame in stretch])
    return steps


def _plan(track: Track, frames: Sequence[int]) -> dict[int, Step]:
    seen = [track.seen[frame] for frame in frames]
    boxes = np.array([each.box for each in seen])
    # The largest of three frames: what moves fast is hidden although its place is one frame old.
    padded = np.pad(boxes, ((1, 1), (0, 0)), mode="edge")
    low = np.minimum.reduce([padded[:-2, :2], padded[1:-1, :2], padded[2:, :2]])
    high = np.maximum.reduce([padded[:-2, 2:], padded[1:-1, 2:], padded[2:, 2:]])
    quads = _smooth(seen, _steady(seen))
    return {
        frame: Step(
            track=track.number,
            box=(*map(float, low[place]), *map(float, high[place])),  # type: ignore[arg-type]
            quad=quads.get(place),
            reason=None if place in quads else seen[place].reason or "unclear",
        )
        for place, frame in enumerate(frames)
    }


def _steady(seen: Sequence[Seen]) -> NDArray[np.bool_]:
    """Where a face is swapped: most of seven frames are clear, in or between frames that were measured."""
    clear = np.array([each.reason is None for each in seen])
    measured = np.array([each.quad is not None for each in seen])
    most: NDArray[np.bool_] = median_filter(clear.astype(np.uint8), size=_WINDOW, mode="nearest").astype(bool)
    for start, end, whole in _runs(measured):
        if not whole and (start == 0 or end == len(measured) or end - start > _MOST_GAP):
            most[start:end] = False
    for start, end, swapped in list(_runs(most)):
        if swapped and end - start < _SHORTEST and end - start < len(most):
            most[start:end] = False
    return most


def _smooth(seen: Sequence[Seen], swapped: NDArray[np.bool_]) -> dict[int, Quad]:
    """Places of the crops: index in `seen` → quad, for the swapped ones."""
    quads: dict[int, Quad] = {}
    for start, end, swap in _runs(swapped):
        if not swap:
            continue
        places = np.arange(start, end)
        measured = {place: quad for place in range(start, end) if (quad := seen[place].quad) is not None}
        known, values = list(measured), np.array([(*quad.centre, *quad.x_axis) for quad in measured.values()])
        filled = np.column_stack([np.interp(places, known, values[:, column]) for column in range(4)])
        window = min(_WINDOW, len(filled) - (len(filled) + 1) % 2)
        if window > _DEGREE:
            filled = savgol_filter(filled, window, _DEGREE, axis=0, mode="interp")
        for place, (x, y, along, down) in zip(places, filled.tolist(), strict=True):
            quads[int(place)] = Quad(centre=(x, y), x_axis=(along, down))
    return quads


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int, bool]]:
    """Stretches of equal flags: (first, one after the last, the flag)."""
    start = 0
    for flag, group in groupby(flags.tolist()):
        end = start + len(list(group))
        yield start, end, flag
        start = end
