"""What becomes of each face, and of its photo: one policy, whichever way a photo comes in.

A face ends as *swapped*, *covered* or *visible*; a photo is written or withheld. Swapped means that the result met
every criterion that was measured: it shows a face in the original's place, it flipped, and where identity is measured,
dlib's recogniser no longer matches it. A face that failed gets a second persona; what fails again, or could not be
swapped at all, is covered, unless the caller chose otherwise. Pure functions of values.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from visard_errors import FaceTooSmall, NotHidden, PhotoError, UncertainGender

if TYPE_CHECKING:
    from collections.abc import Iterable

# What the photo shows where the face was: the generated face, a cover without features, or the face itself.
FaceOutcome = Literal["swapped", "covered", "visible"]

# What to do about a face that could not be swapped well enough:
#   cover     hide it under a cover that keeps nothing of it, and swap the others
#   withhold  give nothing of the photo out
#   show      leave it: as its swap where there is one, else as it was
Unswapped = Literal["cover", "withhold", "show"]

# Why a face was not swapped, or why its swap does not count:
#   too_small         below the size at which landmarks can be trusted; never sent to a server
#   unclear           masked, half hidden, cut off or a profile: dlib's detector, shown it upright, does not see a face,
#                     or is too little sure of one in such different colours, or the landmarks cannot be right; never
#                     sent either, because the swap would look wrong
#   uncertain         its apparent gender was less certain than asked for, so the direction would have been a guess
#   implausible       the result does not show a face that lies as this one does: two detectors and landmarks tell
#   not_flipped       the classifier does not see the intended gender in the result
#   still_recognised  the recogniser still takes the result for the same person
#   chosen            the caller wanted it so
Reason = Literal["too_small", "unclear", "uncertain", "implausible", "not_flipped", "still_recognised", "chosen"]

# How each is said of one face.
REASONS: dict[Reason, str] = {
    "too_small": "too small to be swapped",
    "unclear": "not seen clearly enough to be swapped",
    "uncertain": "apparent gender too uncertain",
    "implausible": "the swap did not look like a face in its place",
    "not_flipped": "the swap did not flip it",
    "still_recognised": "still recognised after the swap",
    "chosen": "as chosen",
}

# Where another persona may help.
SECOND_TRY: frozenset[Reason] = frozenset({"implausible", "not_flipped", "still_recognised"})


def withheld(reasons: Iterable[Reason]) -> PhotoError:
    """Say why a photo is withheld.

    Args:
        reasons: of those of its faces that could not be swapped well enough; at least one.
    """
    counts = Counter(reasons)
    said = "; ".join(f"{count} × {REASONS[reason]}" for reason, count in counts.items())
    because = f"the photo is withheld because of its faces ({said})"
    if counts["too_small"]:
        return FaceTooSmall(f"{because}: use a larger original, or have them covered")
    if counts["uncertain"]:
        return UncertainGender(f"{because}: choose the direction, lower min_confidence, or have them covered")
    return NotHidden(f"{because}: have them covered, or try again")
