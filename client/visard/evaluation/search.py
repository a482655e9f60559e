"""Whom recognisers find: pictures compared with their own original, and looked up among all originals.

Values in, values out, a match for each photo and each kind of picture. It knows nothing about averages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard_errors import MissingExtra

try:
    from scipy.spatial.distance import cdist
except ImportError as error:
    raise MissingExtra("evaluate", "an evaluation") from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visard.evaluation.measures import Measures
    from visard.evaluation.recognisers import Recogniser

_CHUNK = 1024  # probes compared with the gallery at once: 8 MB per thousand originals
_STRANGERS = 1000  # originals compared among each other: half a million pairs say enough

# Which originals a kind of picture is looked up among.
_GALLERIES = {
    "anonymised": "original",
    "swapped_back": "original",
    "control": "original",
    "anonymised_full": "original_full",
    "control_full": "original_full",
}


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a recogniser makes of one picture.

    Attributes:
        distance: to its original.
        verified: whether that is below the recogniser's threshold, which was made for faces cut out as usual.
        rank1: whether, of all originals, one of the same person is nearest.
    """

    distance: float
    verified: bool
    rank1: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """What one recogniser makes of all photos, in their order.

    Attributes:
        threshold: distance below which faces count as the same person's.
        matches: by the kind of picture; see `visard.evaluation.measures.Measures.descriptors`.
        strangers: distances between originals of different people, to hold the others against.
        rank1_chance: share of probes that guessing would name right.
    """

    threshold: float
    matches: Mapping[str, tuple[Match, ...]] = field(repr=False)
    strangers: NDArray[np.float64] = field(repr=False)
    rank1_chance: float


def identify(measures: Sequence[Measures], recogniser: Recogniser) -> Identity:
    """Let a recogniser compare and search every kind of picture.

    Args:
        measures: of all photos, with its descriptors.
        recogniser: who judges.
    """
    people = people_of(measures)
    described = {
        kind: np.stack([each.descriptors[recogniser.name][kind] for each in measures])
        for kind in {*_GALLERIES, *_GALLERIES.values()}
    }
    some, who = described["original"][:_STRANGERS], np.unique(people[:_STRANGERS], return_inverse=True)[1]
    others = np.triu(who[:, None] != who[None, :])
    counts = Counter(people)
    return Identity(
        threshold=recogniser.threshold,
        matches={
            kind: match_all(described[kind], described[gallery], people, recogniser.threshold)
            for kind, gallery in _GALLERIES.items()
        },
        strangers=cdist(some, some)[others],
        rank1_chance=sum(counts[person] for person in people) / len(people) ** 2,
    )


def match_all(
    probes: NDArray[np.float64], gallery: NDArray[np.float64], people: Sequence[object], threshold: float
) -> tuple[Match, ...]:
    """Compare probe i with original i, and search it among all; see `rank1`."""
    hits, distances = rank1(probes, gallery, people)
    return tuple(
        Match(distance=float(distance), verified=bool(distance < threshold), rank1=hit)
        for hit, distance in zip(hits, distances, strict=True)
    )


def rank1(
    probes: NDArray[np.float64], gallery: NDArray[np.float64], people: Sequence[object]
) -> tuple[list[bool], NDArray[np.float64]]:
    """Look every probe up in a gallery.

    Args:
        probes: (N, D), probe i made of person i.
        gallery: (N, D), original i of person i.
        people: who that is.

    Returns:
        Whether the nearest original is of the probe's person; (N,) distance of each probe to its own original.
    """
    hits: list[bool] = []
    for start in range(0, len(probes), _CHUNK):
        nearest = cdist(probes[start : start + _CHUNK], gallery).argmin(axis=1)
        hits += [people[int(index)] == people[start + offset] for offset, index in enumerate(nearest)]
    return hits, np.linalg.norm(probes - gallery, axis=1)


def people_of(measures: Sequence[Measures]) -> list[str]:
    """Who is in each photo; a photo that does not say is somebody else than all others."""
    return [
        f"person {each.photo.person}" if each.photo.person else f"photo {index}" for index, each in enumerate(measures)
    ]
