"""Computes the figures of a set of photos from the measurements of each: shares, means and medians.

`summary` says which photos make a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, get_args

import numpy as np

from visard.result import Gender
from visard_evaluation.estimates import Estimate, difference, mean, median, share
from visard_evaluation.figures import (
    Compared,
    Control,
    ExpressionDrift,
    Figures,
    Learned,
    Light,
    Linked,
    Naturalness,
    OutsideFace,
    PoseDrift,
    Published,
    Restored,
    Searched,
    SecondOpinion,
)
from visard_evaluation.naturalness import kernel_distance, reference_distance
from visard_evaluation.search import people_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visard_evaluation.measures import Measures
    from visard_evaluation.search import Identity


Part = TypeVar("Part")


def figures_of(measures: Sequence[Measures], identities: Mapping[str, Identity], chosen: Sequence[int]) -> Figures:
    """Reduce some photos to figures.

    A photo without a label counts for the apparent gender of its face, and not for the accuracy.

    Args:
        measures: of all photos.
        identities: by the recogniser's name, of all photos.
        chosen: indices of those that count.
    """
    people = people_of(measures)
    some = [measures[index] for index in chosen]
    seen = [m for m in some if m.detected_yunet is not None]
    beyond = [m.outside.levels_beyond_crop for m in some if m.outside.levels_beyond_crop is not None]
    turned = [m.kept.light_direction_degrees for m in some if m.kept.light_direction_degrees is not None]

    def each(read: Callable[[Identity, Sequence[int]], Part]) -> dict[str, Part]:
        return {name: read(identity, chosen) for name, identity in identities.items()}

    return Figures(
        n=len(some),
        by_gender={gender: _published([m for m in some if m.group == gender]) for gender in get_args(Gender)},
        overall=_published(some),
        detection_preserved=share([m.detected for m in some]),
        detection_preserved_yunet=share([bool(m.detected_yunet) for m in seen]),
        detection_preserved_both=share([m.detected and bool(m.detected_yunet) for m in seen]),
        identity=each(_identity),
        identity_full=each(_identity_full),
        control=each(_control),
        swap_back=each(_swap_back),
        learned=each(_learned),
        restored=each(_restored),
        linkability=each(_linkability),
        landmark_drift_percent=mean([m.landmark_drift_percent for m in some]),
        pose_drift_degrees=PoseDrift(
            yaw=median([m.pose_drift.yaw for m in some]),
            pitch=median([m.pose_drift.pitch for m in some]),
            roll=median([m.pose_drift.roll for m in some]),
        ),
        expression_drift_percent=ExpressionDrift(
            mouth_opening=mean([m.kept.mouth_opening for m in some]),
            eye_opening=mean([m.kept.eye_opening for m in some]),
        ),
        light=Light(levels=mean([m.kept.light_levels for m in some]), direction_degrees=mean(turned)),
        skin_delta_e=mean([m.kept.skin_delta_e for m in some]),
        outside_face=OutsideFace(
            levels=mean([m.outside.levels for m in some]),
            colour_delta_e=mean([m.outside.colour_delta_e for m in some]),
            levels_beyond_crop=mean(beyond),
        ),
        second_classifier=_second_classifier(some),
        naturalness=_naturalness(some, [people[index] for index in chosen]),
    )


def _published(part: Sequence[Measures]) -> Published:
    return Published(
        classifier_accuracy=share([m.gender == m.photo.gender for m in part if m.photo.gender is not None]),
        swap_success=share([m.flipped for m in part]),
        similarity_percent=mean([m.similarity_percent for m in part]),
    )


def _identity(identity: Identity, chosen: Sequence[int]) -> Compared:
    return _compared(identity, chosen, "anonymised")


def _swap_back(identity: Identity, chosen: Sequence[int]) -> Compared:
    return _compared(identity, chosen, "swapped_back")


def _compared(identity: Identity, chosen: Sequence[int], kind: str) -> Compared:
    """Verification and search with a kind of picture, compared with the control."""
    matches, control = ([identity.matches[each][index] for index in chosen] for each in (kind, "control"))
    verified, found = [m.verified for m in matches], [m.rank1 for m in matches]
    return Compared(
        verification=share(verified),
        verification_minus_control=difference(verified, [m.verified for m in control]),
        rank1=share(found),
        rank1_minus_control=difference(found, [m.rank1 for m in control]),
        distance=mean([m.distance for m in matches]),
    )


def _identity_full(identity: Identity, chosen: Sequence[int]) -> Searched:
    found, control = (
        [identity.matches[kind][index].rank1 for index in chosen] for kind in ("anonymised_full", "control_full")
    )
    return Searched(rank1=share(found), rank1_minus_control=difference(found, control))


def _control(identity: Identity, chosen: Sequence[int]) -> Control:
    tight, full = ([identity.matches[kind][index] for index in chosen] for kind in ("control", "control_full"))
    return Control(
        verification=share([m.verified for m in tight]),
        rank1=share([m.rank1 for m in tight]),
        rank1_full=share([m.rank1 for m in full]),
    )


def _learned(identity: Identity, chosen: Sequence[int]) -> Learned:
    if not identity.learned:
        nothing = Estimate(None)
        return Learned(rank1=nothing, control_rank1=nothing, rank1_minus_control=nothing)
    found, control = ([identity.learned[kind][index] for index in chosen] for kind in ("anonymised", "control"))
    return Learned(rank1=share(found), control_rank1=share(control), rank1_minus_control=difference(found, control))


def _restored(identity: Identity, chosen: Sequence[int]) -> Restored | None:
    """None where nobody asked for it; the originals reduced to the same size say what could be found at all."""
    kinds = ("restored", "restored_control", "reduced")
    if kinds[0] not in identity.matches:
        return None
    found, control, reduced = ([identity.matches[kind][index].rank1 for index in chosen] for kind in kinds)
    return Restored(
        verification=share([identity.matches["restored"][index].verified for index in chosen]),
        rank1=share(found),
        control_rank1=share(control),
        rank1_minus_control=difference(found, control),
        rank1_of_reduced_originals=share(reduced),
    )


def _linkability(identity: Identity, chosen: Sequence[int]) -> Linked:
    def hits(kind: str) -> tuple[list[bool], list[bool]]:
        """By photo whose person has another one: whether it is linked, and whether its control is."""
        pairs = [(identity.linked[kind][index], identity.linked["control"][index]) for index in chosen]
        known = [(hit, control) for hit, control in pairs if hit is not None and control is not None]
        return [hit for hit, _ in known], [control for _, control in known]

    keyed = hits("keyed") if "keyed" in identity.linked else None
    return Linked(
        random=share(hits("anonymised")[0]),
        random_minus_control=difference(*hits("anonymised")),
        keyed=None if keyed is None else share(keyed[0]),
        keyed_minus_control=None if keyed is None else difference(*keyed),
        control=share(hits("control")[0]),
        originals=share(hits("original")[0]),
    )


def _second_classifier(some: Sequence[Measures]) -> SecondOpinion | None:
    """What the second classifier says; None without one."""
    judged = [(m, *m.second_genders) for m in some if m.second_genders is not None]
    if not judged and some:
        return None
    return SecondOpinion(
        classifier_accuracy=share([before == m.photo.gender for m, before, _ in judged if m.photo.gender]),
        swap_success=share([after == m.target for m, _, after in judged]),
    )


def _naturalness(some: Sequence[Measures], people: Sequence[str]) -> Naturalness | None:
    """The kernel distance of results to originals, and of originals to others; None where nobody asked for it."""
    features = [m.features for m in some if m.features is not None]
    if not features:
        return None
    originals, results = (np.stack([pair[side] for pair in features]) for side in (0, 1))
    return Naturalness(
        kernel_distance=kernel_distance(originals, results, people),
        kernel_distance_of_originals=reference_distance(originals, people),
    )
