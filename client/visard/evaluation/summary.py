"""Reduces the measures of many photos to figures, each with the interval that its sample allows.

Rates get Wilson's 95 % interval, means Student's; both take the photos for independent, so that several photos of one
person make an interval narrower than it should be. It knows nothing about how figures are shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from visard.result import Gender
from visard_errors import MissingExtra

try:
    from scipy import stats
    from scipy.spatial.distance import cdist
except ImportError as error:
    raise MissingExtra("evaluate", "an evaluation") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from visard.evaluation.measures import Measures
    from visard.evaluation.recognisers import Recogniser

    Value = TypeVar("Value")

CONFIDENCE = 0.95
WORST = 10  # cases listed per figure

_CHUNK = 1024  # probes compared with the gallery at once: 8 MB per thousand originals
_FEWEST = 5  # values below which a mean has no interval: of two, it would reach over the whole scale and beyond
_STRANGERS = 1000  # originals compared among each other: half a million pairs say enough


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where the sample allows none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a recogniser makes of one result, or of one result after the attack.

    Attributes:
        distance: to its original.
        verified: whether that is below the recogniser's threshold.
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
        anonymised: the results.
        swapped_back: the results after the opposite generator.
        strangers: distances between originals of different people, to hold the others against.
        rank1_chance: share of probes that guessing would name right.
    """

    threshold: float
    anonymised: tuple[Match, ...] = field(repr=False)
    swapped_back: tuple[Match, ...] = field(repr=False)
    strangers: NDArray[np.float64] = field(repr=False)
    rank1_chance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: everything, ready for JSON; see `summarise`.
        measures: of each photo that could be measured.
        identities: by the recogniser's name.
    """

    figures: dict[str, Any]
    measures: tuple[Measures, ...] = field(repr=False)
    identities: Mapping[str, Identity] = field(repr=False)


def summarise(
    measures: Sequence[Measures],
    errors: Iterable[Exception],
    recognisers: Sequence[Recogniser],
    groups: Sequence[str] = (),
) -> Evaluation:
    """Reduce measures to figures.

    Shares lie in 0..1. A photo without a label counts for the apparent gender of its face, and not for the accuracy.
    The figures are:

    * `n` faces;
    * `classifier_accuracy`, `swap_success` and `similarity_percent`, each for `female` and `male` (None without such
      photos), and for all under `overall`;
    * `detection_preserved`, the share of results in which the detector sees a face in the same place;
    * `identity.<recogniser>`: `verification`, the share that is still taken for the same person at the recogniser's
      own threshold; `rank1`, the share whose nearest neighbour among all originals is the same person, who is always
      among them; `distance`, the mean; `rank1_chance`, what guessing would reach; `false_match`, the share of pairs of
      different people's originals that the threshold takes for one person;
    * `swap_back.<recogniser>`: `verification`, `rank1` and `distance` after the opposite generator;
    * `landmark_drift_percent` and `pose_drift_degrees`, means;
    * `outside_face`, means of what changed there (see `visard.evaluation.measures.Outside`);
    * `groups.<column>.<value>`: all of the above for a part of the photos, held against the whole gallery;
    * `intervals`: [low, high] under the same names, None where there is none;
    * `worst`: names and values of the worst cases; `errors`: photos without figures, by the error's name;
    * `settings`: what the figures depend on.

    Args:
        measures: of the photos that could be measured.
        errors: of the others.
        recognisers: those that described the faces.
        groups: columns of the manifest.
    """
    measures = tuple(measures)
    identities = {recogniser.name: _identity(measures, recogniser) for recogniser in recognisers}
    everybody = range(len(measures))
    figures = _figures(measures, identities, everybody)
    for name, identity in identities.items():
        figures["identity"][name] |= {
            "rank1_chance": _round(identity.rank1_chance),
            "false_match": _mean(list(identity.strangers < identity.threshold)).value,
        }
    columns: dict[str, Sequence[str]] = {"gender": [each.group for each in measures]}
    columns |= {column: [each.photo.columns.get(column, "") for each in measures] for column in groups}
    figures["groups"] = {
        column: {
            value or "not said": _figures(measures, identities, [i for i in everybody if values[i] == value])
            for value in sorted(set(values))
        }
        for column, values in columns.items()
    }
    figures["errors"] = dict(Counter(type(error).__name__ for error in errors))
    figures["worst"] = _worst(measures, identities)
    figures["settings"] = {
        "confidence": CONFIDENCE,
        "gallery": len(measures),
        "people": len(set(_people(measures))),
        "recognisers": {recogniser.name: recogniser.passport() for recogniser in recognisers},
    }
    return Evaluation(figures=figures, measures=measures, identities=identities)


def wilson(hits: Sequence[bool]) -> Estimate:
    """The share of hits and its Wilson score interval."""
    if not hits:
        return Estimate(None)
    result = stats.binomtest(sum(map(bool, hits)), len(hits))
    interval = result.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Estimate(_round(result.statistic), _round(interval.low), _round(interval.high))


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


def _identity(measures: Sequence[Measures], recogniser: Recogniser) -> Identity:
    people = _people(measures)
    described = [each.descriptors[recogniser.name] for each in measures]
    gallery = np.stack([each.original for each in described])

    def matches(probes: NDArray[np.float64]) -> tuple[Match, ...]:
        hits, distances = rank1(probes, gallery, people)
        return tuple(
            Match(distance=float(distance), verified=bool(distance < recogniser.threshold), rank1=hit)
            for hit, distance in zip(hits, distances, strict=True)
        )

    some, who = gallery[:_STRANGERS], np.unique(people[:_STRANGERS], return_inverse=True)[1]
    others = np.triu(who[:, None] != who[None, :])
    counts = Counter(people)
    return Identity(
        threshold=recogniser.threshold,
        anonymised=matches(np.stack([each.anonymised for each in described])),
        swapped_back=matches(np.stack([each.swapped_back for each in described])),
        strangers=cdist(some, some)[others],
        rank1_chance=sum(counts[person] for person in people) / len(people) ** 2,
    )


def _people(measures: Sequence[Measures]) -> list[str]:
    """Who is in each photo; a photo that does not say is somebody else than all others."""
    return [
        f"person {each.photo.person}" if each.photo.person else f"photo {index}" for index, each in enumerate(measures)
    ]


def _figures(measures: Sequence[Measures], identities: Mapping[str, Identity], chosen: Sequence[int]) -> dict[str, Any]:
    """Figures of some of the photos, by their indices."""
    some = [measures[index] for index in chosen]

    def published(part: Sequence[Measures]) -> dict[str, Estimate]:
        return {
            "classifier_accuracy": wilson([m.gender == m.photo.gender for m in part if m.photo.gender is not None]),
            "swap_success": wilson([m.flipped for m in part]),
            "similarity_percent": _mean([m.similarity_percent for m in part]),
        }

    def identity(matches: Sequence[Match]) -> dict[str, Estimate]:
        part = [matches[index] for index in chosen]
        return {
            "verification": wilson([match.verified for match in part]),
            "rank1": wilson([match.rank1 for match in part]),
            "distance": _mean([match.distance for match in part]),
        }

    by_gender = {gender: published([m for m in some if m.group == gender]) for gender in get_args(Gender)}
    beyond = [m.outside.levels_beyond_crop for m in some if m.outside.levels_beyond_crop is not None]
    tree = {
        **{name: {gender: by_gender[gender][name] for gender in by_gender} for name in published([])},
        "overall": published(some),
        "detection_preserved": wilson([m.detected for m in some]),
        "identity": {name: identity(each.anonymised) for name, each in identities.items()},
        "swap_back": {name: identity(each.swapped_back) for name, each in identities.items()},
        "landmark_drift_percent": _mean([m.landmark_drift_percent for m in some]),
        "pose_drift_degrees": {
            angle: _mean([getattr(m.pose_drift, angle) for m in some]) for angle in ("yaw", "pitch", "roll")
        },
        "outside_face": {
            "levels": _mean([m.outside.levels for m in some]),
            "colour_delta_e": _mean([m.outside.colour_delta_e for m in some]),
            "levels_beyond_crop": _mean(beyond),
        },
    }
    return {
        "n": len(some),
        **_map(tree, lambda estimate: estimate.value),
        "intervals": _map(tree, lambda estimate: None if estimate.low is None else [estimate.low, estimate.high]),
    }


def _map(tree: Mapping[str, Any], read: Callable[[Estimate], Value]) -> dict[str, Any]:
    """The same tree with a part of every estimate."""
    return {key: read(node) if isinstance(node, Estimate) else _map(node, read) for key, node in tree.items()}


def _mean(values: Sequence[float]) -> Estimate:
    """The mean and Student's interval, cut off at 0, below which none of these quantities can lie."""
    if not len(values):
        return Estimate(None)
    mean = float(np.mean(values))
    if len(values) < _FEWEST:
        return Estimate(_round(mean))
    half = float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(_round(mean), _round(max(0.0, mean - half)), _round(mean + half))


def _worst(measures: Sequence[Measures], identities: Mapping[str, Identity]) -> dict[str, Any]:
    """Names and values of the worst cases of each kind, the worst first."""
    names = [each.photo.name for each in measures]

    def lowest(values: Sequence[float], sign: int = 1) -> list[dict[str, Any]]:
        order = sorted(range(len(values)), key=lambda index: sign * values[index])[:WORST]
        return [{"file": names[index], "value": _round(values[index])} for index in order]

    return {
        "identity": {name: lowest([m.distance for m in each.anonymised]) for name, each in identities.items()},
        "swap_back": {name: lowest([m.distance for m in each.swapped_back]) for name, each in identities.items()},
        "landmark_drift_percent": lowest([each.landmark_drift_percent for each in measures], sign=-1),
        "outside_face_levels": lowest([each.outside.levels for each in measures], sign=-1),
        "not_swapped": [each.photo.name for each in measures if not each.flipped][:WORST],
        "not_detected": [each.photo.name for each in measures if not each.detected][:WORST],
    }


def _round(value: float) -> float:
    return round(float(value), 4)
