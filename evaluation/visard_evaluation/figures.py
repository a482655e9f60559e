"""The figures of some photos: what was found of each, reduced to shares, means and medians, as a tree by name.

It knows nothing about which photos make a group, nor about how figures are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from visard.result import Gender
from visard_evaluation.estimates import Estimate, difference, mean, median, read_tree, share
from visard_evaluation.naturalness import kernel_distance, reference_distance
from visard_evaluation.search import people_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visard_evaluation.measures import Measures
    from visard_evaluation.search import Identity


def figures_of(
    measures: Sequence[Measures], identities: Mapping[str, Identity], chosen: Sequence[int]
) -> dict[str, Any]:
    """Reduce some photos to figures; see `visard_evaluation.summary.summarise`.

    Args:
        measures: of all photos.
        identities: by the recogniser's name, of all photos.
        chosen: indices of those that count.
    """
    people = people_of(measures)
    some = [measures[index] for index in chosen]
    by_gender = {gender: _published([m for m in some if m.group == gender]) for gender in get_args(Gender)}
    tree = {
        **{name: {gender: by_gender[gender][name] for gender in by_gender} for name in _published([])},
        "overall": _published(some),
        "detection_preserved": share([m.detected for m in some]),
        "detection_preserved_yunet": share([m.detected_yunet for m in some if m.detected_yunet is not None]),
        "detection_preserved_both": share(
            [m.detected and m.detected_yunet for m in some if m.detected_yunet is not None]
        ),
        **{
            attack: {name: read(each, chosen) for name, each in identities.items()}
            for attack, read in (
                ("identity", _identity),
                ("identity_full", _identity_full),
                ("control", _control),
                ("swap_back", _swap_back),
                ("learned", _learned),
                ("restored", _restored),
                ("linkability", _linkability),
            )
        },
        **_kept(some),
        "second_classifier": _second_classifier(some),
        "naturalness": _naturalness(some, [people[index] for index in chosen]),
    }
    return {
        "n": len(some),
        **read_tree(tree, lambda estimate: estimate.value),
        "intervals": read_tree(tree, lambda estimate: None if estimate.low is None else [estimate.low, estimate.high]),
    }


def _published(part: Sequence[Measures]) -> dict[str, Estimate]:
    """What published tables have."""
    return {
        "classifier_accuracy": share([m.gender == m.photo.gender for m in part if m.photo.gender is not None]),
        "swap_success": share([m.flipped for m in part]),
        "similarity_percent": mean([m.similarity_percent for m in part]),
    }


def _identity(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    return _compared(identity, chosen, "anonymised")


def _swap_back(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    return _compared(identity, chosen, "swapped_back")


def _compared(identity: Identity, chosen: Sequence[int], kind: str) -> dict[str, Estimate]:
    """Verification and search with a kind of picture, held against the control."""
    matches, control = ([identity.matches[each][index] for index in chosen] for each in (kind, "control"))
    verified, found = [m.verified for m in matches], [m.rank1 for m in matches]
    return {
        "verification": share(verified),
        "verification_minus_control": difference(verified, [m.verified for m in control]),
        "rank1": share(found),
        "rank1_minus_control": difference(found, [m.rank1 for m in control]),
        "distance": mean([m.distance for m in matches]),
    }


def _identity_full(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    found, control = (
        [identity.matches[kind][index].rank1 for index in chosen] for kind in ("anonymised_full", "control_full")
    )
    return {"rank1": share(found), "rank1_minus_control": difference(found, control)}


def _control(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    tight, full = ([identity.matches[kind][index] for index in chosen] for kind in ("control", "control_full"))
    return {
        "verification": share([m.verified for m in tight]),
        "rank1": share([m.rank1 for m in tight]),
        "rank1_full": share([m.rank1 for m in full]),
    }


def _learned(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    if not identity.learned:
        nothing = Estimate(None)
        return {"rank1": nothing, "control_rank1": nothing, "rank1_minus_control": nothing}
    found, control = ([identity.learned[kind][index] for index in chosen] for kind in ("anonymised", "control"))
    return {"rank1": share(found), "control_rank1": share(control), "rank1_minus_control": difference(found, control)}


def _restored(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    """Nothing where nobody asked for it; the originals reduced to the same size say what could be found at all."""
    kinds = ("restored", "restored_control", "reduced")
    if kinds[0] not in identity.matches:
        return {}
    found, control, reduced = ([identity.matches[kind][index].rank1 for index in chosen] for kind in kinds)
    return {
        "verification": share([identity.matches["restored"][index].verified for index in chosen]),
        "rank1": share(found),
        "control_rank1": share(control),
        "rank1_minus_control": difference(found, control),
        "rank1_of_reduced_originals": share(reduced),
    }


def _linkability(identity: Identity, chosen: Sequence[int]) -> dict[str, Estimate]:
    """Shares of the photos whose person has another one."""
    tree = {}
    for kind, name in (("anonymised", "random"), ("keyed", "keyed"), ("control", "control"), ("original", "originals")):
        if kind in identity.linked:
            pairs = [(identity.linked[kind][index], identity.linked["control"][index]) for index in chosen]
            known = [(hit, control) for hit, control in pairs if hit is not None and control is not None]
            hits, controls = [hit for hit, _ in known], [control for _, control in known]
            tree[name] = share(hits)
            if name in ("random", "keyed"):
                tree[f"{name}_minus_control"] = difference(hits, controls)
    return tree


def _second_classifier(some: Sequence[Measures]) -> dict[str, Estimate]:
    """What `_published` says of the classifier, for the second one; nothing without one."""
    judged = [(m, *m.second_genders) for m in some if m.second_genders is not None]
    if not judged and some:
        return {}
    return {
        "classifier_accuracy": share([before == m.photo.gender for m, before, _ in judged if m.photo.gender]),
        "swap_success": share([after == m.target for m, _, after in judged]),
    }


def _naturalness(some: Sequence[Measures], people: Sequence[str]) -> dict[str, Estimate]:
    """The kernel distance of results to originals, and of originals to others; nothing where nobody asked for it."""
    features = [m.features for m in some if m.features is not None]
    if not features:
        return {}
    originals, results = (np.stack([pair[side] for pair in features]) for side in (0, 1))
    return {
        "kernel_distance": kernel_distance(originals, results, people),
        "kernel_distance_of_originals": reference_distance(originals, people),
    }


def _kept(some: Sequence[Measures]) -> dict[str, Any]:
    """What should not have changed."""
    beyond = [m.outside.levels_beyond_crop for m in some if m.outside.levels_beyond_crop is not None]
    return {
        "landmark_drift_percent": mean([m.landmark_drift_percent for m in some]),
        "pose_drift_degrees": {
            angle: median([getattr(m.pose_drift, angle) for m in some]) for angle in ("yaw", "pitch", "roll")
        },
        "expression_drift_percent": {
            "mouth_opening": mean([m.kept.mouth_opening for m in some]),
            "eye_opening": mean([m.kept.eye_opening for m in some]),
        },
        "light": {
            "levels": mean([m.kept.light_levels for m in some]),
            "direction_degrees": mean(
                [m.kept.light_direction_degrees for m in some if m.kept.light_direction_degrees is not None]
            ),
        },
        "skin_delta_e": mean([m.kept.skin_delta_e for m in some]),
        "outside_face": {
            "levels": mean([m.outside.levels for m in some]),
            "colour_delta_e": mean([m.outside.colour_delta_e for m in some]),
            "levels_beyond_crop": mean(beyond),
        },
    }
