"""Whom recognisers find: pictures compared with their own original, and looked up among all originals.

Values in, values out, a match for each photo and each kind of picture.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard_errors import MissingExtra
from visard_evaluation.learned import search_learned

try:
    from scipy.spatial.distance import cdist
except ImportError as error:
    raise MissingExtra("evaluate", "an evaluation") from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visard_evaluation.measures import Measures
    from visard_evaluation.recognisers import Recogniser

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
        matches: by the kind of picture; see `visard_evaluation.measures.Measures.descriptors`.
        learned: whether the attacker who learns descriptors finds each photo's person, by the kind of picture it learns
            from, `anonymised` or `control`; empty where there are too few people.
        linked: whether the nearest other photo is of the same person, by the kind of picture: `original`, `anonymised`
            with random personas, `control`, and `keyed`; None where a person has no other photo.
        strangers: distances between originals of different people, to compare the others with.
        rank1_chance: share of probes that guessing would name right.
    """

    threshold: float
    matches: Mapping[str, tuple[Match, ...]] = field(repr=False)
    learned: Mapping[str, tuple[bool, ...]] = field(repr=False)
    linked: Mapping[str, tuple[bool | None, ...]] = field(repr=False)
    strangers: NDArray[np.float64] = field(repr=False)
    rank1_chance: float


def identify(
    measures: Sequence[Measures],
    recogniser: Recogniser,
    keyed: Sequence[NDArray[np.float64] | None] | None = None,
    restored: Mapping[str, NDArray[np.float64]] | None = None,
) -> Identity:
    """Let a recogniser compare, search and link every kind of picture.

    Args:
        measures: of all photos, with its descriptors.
        recogniser: who judges.
        keyed: its descriptors of the photos anonymised with a key for each person, None where there is none.
        restored: its (N, D) descriptors of restored pictures, by their kind.
    """
    people = people_of(measures)
    described = {
        kind: np.stack([each.descriptors[recogniser.name][kind] for each in measures])
        for kind in {*_GALLERIES, *_GALLERIES.values()}
    }
    galleries = dict(_GALLERIES)
    for kind, descriptors in (restored or {}).items():
        described[kind], galleries[kind] = descriptors, "original"
    learned = {
        kind: search_learned(described[kind], described["original"], people) for kind in ("anonymised", "control")
    }
    linked = {kind: link(described[kind], people) for kind in ("original", "anonymised", "control")}
    if keyed is not None:
        pairs = zip(keyed, described["anonymised"], strict=True)
        again = np.stack([random if own is None else own for own, random in pairs])
        missing = [own is None for own in keyed]
        linked["keyed"] = tuple(
            None if absent else hit for absent, hit in zip(missing, link(again, people), strict=True)
        )
    some, who = described["original"][:_STRANGERS], np.unique(people[:_STRANGERS], return_inverse=True)[1]
    others = np.triu(who[:, None] != who[None, :])
    counts = Counter(people)
    return Identity(
        threshold=recogniser.threshold,
        matches={
            kind: match_all(described[kind], described[gallery], people, recogniser.threshold)
            for kind, gallery in galleries.items()
        },
        learned={kind: hits for kind, hits in learned.items() if hits is not None},
        linked=linked,
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


def link(descriptors: NDArray[np.float64], people: Sequence[str]) -> tuple[bool | None, ...]:
    """Say of each photo whether its nearest neighbour among the others is of the same person.

    Args:
        descriptors: (N, D).
        people: who is in each photo.

    Returns:
        By photo; None where there is no other photo of its person.
    """
    counts, found = Counter(people), []
    for index, person in enumerate(people):
        hit = None
        if counts[person] > 1:
            distances = cdist(descriptors[index : index + 1], descriptors)[0]
            distances[index] = np.inf
            hit = people[int(distances.argmin())] == person
        found.append(hit)
    return tuple(found)


def people_of(measures: Sequence[Measures]) -> list[str]:
    """Who is in each photo; a photo that does not say is somebody else than all others."""
    return [
        f"person {each.photo.person}" if each.photo.person else f"photo {index}" for index, each in enumerate(measures)
    ]
