"""What becomes of a face and of its photo: the verdict on a swap, the three policies, and the pixelation.

A face that could not be hidden never reaches the output as it was. Pure functions of values; files, journals
and servers are left to the callers.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

    from visard.result import FaceResult
    from visard_preprocess.geometry import Box

# What the swap brought for one face:
#   hidden            swapped, and every criterion asked for is met
#   too_small         below the size at which landmarks can be trusted; never sent to a server
#   uncertain         its apparent gender was less certain than asked for, so the direction would have been a guess
#   not_flipped       the classifier does not see the intended gender in the result
#   still_recognised  the recogniser still takes the result for the same person (judged where identity is requested)
#   kept              left visible on purpose: a person to keep, or not one of the only people to hide
#   untried           not sent, because another face had the photo withheld already
Verdict = Literal["hidden", "too_small", "uncertain", "not_flipped", "still_recognised", "kept", "untried"]

# What stands in the written photo in its place; `none` where nothing is written or the face is kept.
Treatment = Literal["swapped", "swapped_twice", "pixelated", "none"]

# What to do with a photo that has a face that is neither hidden nor kept:
#   report       write nothing and record why
#   blur         pixelate that face and swap the others
#   second-pass  send the swapped face through the same generator once more; write nothing where that fails too
Policy = Literal["report", "blur", "second-pass"]

# The detector's box ends at the brows and the chin; half of its edge more on every side takes in hair and ears.
_MARGIN = 0.5
_BLOCKS = 4  # per edge: a face of 4×4 colours has no eyes
_LEVELS = 16  # per channel: rounds off the last of what the means could tell


def judge(face: FaceResult, min_confidence: float) -> Verdict:
    """Say what the first swap of a face brought.

    Args:
        face: scored, with its identity distance where identity is a criterion.
        min_confidence: 0.5..1, of the apparent gender before; it has no meaning where the direction was given.
    """
    if face.gender is not None and face.gender.confidence < min_confidence:
        return "uncertain"
    if not face.flipped:
        return "not_flipped"
    return "still_recognised" if face.same_person else "hidden"


def judge_again(face: FaceResult, first: Verdict) -> Verdict:
    """Say what the second pass brought.

    A flip proves nothing where the gender was uncertain to begin with, so there the recogniser has to agree as well:
    `face` then has an identity distance in any case.
    """
    if face.flipped and not face.same_person:
        return "hidden"
    if first == "uncertain":
        return first
    return "still_recognised" if face.flipped else "not_flipped"


def pixelate(photo: NDArray[np.uint8], boxes: Iterable[Box]) -> None:
    """Replace faces by 4×4 blocks of one coarse colour each, in place.

    Each block is the mean of what was under it, rounded to 16 levels: at most 48 numbers of 4 bits remain of a face,
    whatever its size. The region is twice the box, so that neither hair nor the outline of the head remains.

    Args:
        photo: (H, W, 3) uint8 RGB, writable.
        boxes: (left, top, right, bottom) as the detector gives them; they may leave the photo.
    """
    height, width = photo.shape[:2]
    for left, top, right, bottom in boxes:
        margin_x, margin_y = _MARGIN * (right - left), _MARGIN * (bottom - top)
        columns = _edges(left - margin_x, right + margin_x, width)
        rows = _edges(top - margin_y, bottom + margin_y, height)
        for above, below in pairwise(rows):
            for before, after in pairwise(columns):
                block = photo[above:below, before:after]
                if block.size:
                    step = 256 / _LEVELS
                    block[...] = (np.floor(block.mean(axis=(0, 1)) / step) + 0.5) * step


def _edges(low: float, high: float, limit: int) -> list[int]:
    """Where the blocks between two coordinates begin and end, within 0..limit."""
    first, last = max(0, math.floor(low)), min(limit, math.ceil(high))
    return [int(edge) for edge in np.linspace(first, max(first, last), _BLOCKS + 1)]
