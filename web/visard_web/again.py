"""Another persona for the faces of a photo whose swaps did not do; the others keep what they have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from visard.policy import SECOND_TRY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visard import Found, Result


def that_may_do(result: Result) -> tuple[int, ...]:
    """Which covered faces another persona may help: their indices."""
    return tuple(face.index for face in result.others if face.outcome == "covered" and face.reason in SECOND_TRY)


def alone(found: Found, indices: Sequence[int]) -> Found:
    """The same photo with these faces only."""
    return replace(
        found,
        faces=tuple(found.faces[index] for index in indices),
        genders=tuple(found.genders[index] for index in indices),
        aligned={place: found.aligned[index] for place, index in enumerate(indices) if index in found.aligned},
    )


def taken_over(before: Result, again: Result, indices: Sequence[int]) -> Result:
    """Put what became of these faces in the place of what they were.

    Args:
        before: of all faces.
        again: of the faces with these indices, `alone`.
        indices: theirs in `before`.
    """
    swapped = [replace(face, index=indices[face.index]) for face in again.faces]
    others = [replace(face, index=indices[face.index]) for face in again.others]
    kept = [face for face in before.others if face.index not in indices]
    return replace(
        before,
        faces=tuple(sorted([*before.faces, *swapped], key=lambda face: face.index)),
        others=tuple(sorted([*kept, *others], key=lambda face: face.index)),
    )
