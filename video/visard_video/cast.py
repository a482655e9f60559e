"""Who becomes whom: one direction and one persona for all of a track, chosen on its clearest frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from visard import judgement
from visard.judgement import TARGETS, descriptor
from visard.options import Options
from visard.personas import draw
from visard.policy import Reason
from visard.result import ApparentGender
from visard.scoring import SAME_PERSON_BELOW, identity_distance
from visard.wire import opposite_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from visard import Client
    from visard.wire import Direction, Swap
    from visard_video.options import VideoOptions
    from visard_video.tracks import Track

TRIES = 3  # personas


@dataclass(frozen=True, kw_only=True, eq=False)
class Role:
    """What becomes of a track's face.

    Attributes:
        direction: which way it is swapped.
        persona: whose look it gets.
        reason: why it is not swapped at all; None where it is.
        descriptor: (128,) of the clear frames, where people are to be linked.
    """

    direction: Direction = "to_male"
    persona: int = 0
    reason: Reason | None = None
    descriptor: NDArray[np.float64] | None = field(default=None, repr=False)

    def like(self, others: Iterable[Role]) -> Role:
        """Take the look of the role before it whose face is the nearest, if a recogniser takes that for the same."""
        if self.descriptor is None or self.reason is not None:
            return self
        known = [
            (identity_distance(self.descriptor, other.descriptor), other)
            for other in others
            if other.descriptor is not None and other.reason is None
        ]
        distance, nearest = min(known, key=lambda pair: pair[0], default=(math.inf, self))
        if distance >= SAME_PERSON_BELOW:
            return self
        return replace(self, direction=nearest.direction, persona=nearest.persona)


def cast(client: Client, track: Track, options: VideoOptions) -> Role:
    """Choose for a track that is done; a track that was never clear is covered.

    Args:
        client: asks for genders and swaps.
        track: with its samples.
        options: direction, key, and what is good enough.
    """
    if not track.samples:
        return Role(reason="unclear")
    aligned = np.stack(track.samples)
    direction = options.direction
    if direction == "opposite":
        seen = client.genders(aligned)
        male = np.mean([one.confidence if one.label == "male" else 1 - one.confidence for one in seen])
        probabilities = np.array([1 - male, male], np.float32)
        if probabilities.max() < options.min_confidence:
            return Role(reason="uncertain")
        direction = opposite_of(probabilities)
    base = draw(1, options.persona_key)[0]
    reasons: list[Reason] = []
    for attempt in range(TRIES):
        persona = (base + TRIES * track.number + attempt) % 2**31
        swaps = client.swap(aligned, direction, [persona] * len(aligned))
        found = [verdict(face, swap, direction, options) for face, swap in zip(aligned, swaps, strict=True)]
        reasons = [reason for reason in found if reason is not None]
        if not reasons:
            break
    if len(reasons) == len(aligned):
        return Role(reason=reasons[0])
    described = np.mean([descriptor(face, Options()) for face in aligned], axis=0) if options.link_people else None
    return Role(direction=direction, persona=persona, descriptor=described)


def verdict(aligned: NDArray[np.uint8], swap: Swap, direction: Direction, options: VideoOptions) -> Reason | None:
    """Say why a swap in one frame is not good enough, by the criteria of photos; None where it is."""
    from visard_preprocess.align import finder

    if ApparentGender.from_probabilities(swap.swapped_gender).label != TARGETS[direction]:
        return "not_flipped"
    if not finder().takes_its_place(swap.swapped, aligned):
        return "implausible"
    if options.identity and judgement.identity_distance(aligned, swap.swapped, Options()) < SAME_PERSON_BELOW:
        return "still_recognised"
    return None
