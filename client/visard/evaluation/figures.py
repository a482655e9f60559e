"""The figures of some photos: what was found of each, reduced to shares and means with intervals, as a tree by name.

It knows nothing about which photos make a group, nor about how figures are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from visard.evaluation.estimates import Estimate, difference, mean, read_tree, share
from visard.result import Gender

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visard.evaluation.measures import Measures
    from visard.evaluation.search import Identity


def figures_of(
    measures: Sequence[Measures], identities: Mapping[str, Identity], chosen: Sequence[int]
) -> dict[str, Any]:
    """Reduce some photos to figures; see `visard.evaluation.summary.summarise`.

    Args:
        measures: of all photos.
        identities: by the recogniser's name, of all photos.
        chosen: indices of those that count.
    """
    some = [measures[index] for index in chosen]
    by_gender = {gender: _published([m for m in some if m.group == gender]) for gender in get_args(Gender)}
    tree = {
        **{name: {gender: by_gender[gender][name] for gender in by_gender} for name in _published([])},
        "overall": _published(some),
        "detection_preserved": share([m.detected for m in some]),
        **{
            attack: {name: read(each, chosen) for name, each in identities.items()}
            for attack, read in (
                ("identity", _identity),
                ("identity_full", _identity_full),
                ("control", _control),
                ("swap_back", _swap_back),
            )
        },
        **_kept(some),
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


def _kept(some: Sequence[Measures]) -> dict[str, Any]:
    """What should not have changed."""
    beyond = [m.outside.levels_beyond_crop for m in some if m.outside.levels_beyond_crop is not None]
    return {
        "landmark_drift_percent": mean([m.landmark_drift_percent for m in some]),
        "pose_drift_degrees": {
            angle: mean([getattr(m.pose_drift, angle) for m in some]) for angle in ("yaw", "pitch", "roll")
        },
        "outside_face": {
            "levels": mean([m.outside.levels for m in some]),
            "colour_delta_e": mean([m.outside.colour_delta_e for m in some]),
            "levels_beyond_crop": mean(beyond),
        },
    }
