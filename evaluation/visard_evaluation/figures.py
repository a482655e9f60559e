"""The figures of some photos: shares, means and medians with their intervals, by name.

Shares lie in 0..1. What ends in `_minus_control` lies in −1..1: how far a share is above that of the control, paired by
photo. The control are originals whose face is painted over. Rank-1 is the share of pictures whose nearest neighbour
among all originals is the same person, who is always among them. `reduce.py` computes the figures;
`markdown.py`, `html.py` and `plots.py` show them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from visard.result import Gender
from visard_evaluation.estimates import Estimate


@dataclass(frozen=True, kw_only=True)
class Published:
    """What published tables have.

    Attributes:
        classifier_accuracy: the share of labelled faces whose label the classifier agrees with.
        swap_success: the share of results that it calls the intended gender.
        similarity_percent: a mean, by the published formula.
    """

    classifier_accuracy: Estimate
    swap_success: Estimate
    similarity_percent: Estimate


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a recogniser makes of one kind of picture.

    Attributes:
        verification: the share that is still taken for the same person at the recogniser's own threshold.
        rank1: the share that a search finds.
        distance: a mean.
    """

    verification: Estimate
    verification_minus_control: Estimate
    rank1: Estimate
    rank1_minus_control: Estimate
    distance: Estimate


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search finds where the recogniser sees the whole aligned crop of both sides, with hair."""

    rank1: Estimate
    rank1_minus_control: Estimate


@dataclass(frozen=True, kw_only=True)
class Control:
    """What a recogniser makes of the control.

    Attributes:
        rank1_full: shown the whole aligned crop.
    """

    verification: Estimate
    rank1: Estimate
    rank1_full: Estimate


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What an attacker finds who learned, from other people's pairs, where anonymisation moves descriptors.

    Without a value where there are too few people to learn from.

    Attributes:
        control_rank1: for one who learned from the control.
    """

    rank1: Estimate
    control_rank1: Estimate
    rank1_minus_control: Estimate


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What an attacker finds who learned, from other people's pairs, to restore pictures.

    Attributes:
        control_rank1: for one who learned from the control.
        rank1_of_reduced_originals: what can be found at that resolution.
    """

    verification: Estimate
    rank1: Estimate
    control_rank1: Estimate
    rank1_minus_control: Estimate
    rank1_of_reduced_originals: Estimate


@dataclass(frozen=True, kw_only=True)
class Linked:
    """Of the photos whose person has another one, the share whose nearest other photo is of the same person.

    Attributes:
        random: personas drawn for each photo.
        control: of the control.
        originals: of the originals.
        keyed: one key for each person; None where nobody made such.
    """

    random: Estimate
    random_minus_control: Estimate
    keyed: Estimate | None
    keyed_minus_control: Estimate | None
    control: Estimate
    originals: Estimate


@dataclass(frozen=True, kw_only=True)
class PoseDrift:
    """Medians, in degrees."""

    yaw: Estimate
    pitch: Estimate
    roll: Estimate


@dataclass(frozen=True, kw_only=True)
class ExpressionDrift:
    """Means, in percent; see `visard_evaluation.kept.Kept`."""

    mouth_opening: Estimate
    eye_opening: Estimate


@dataclass(frozen=True, kw_only=True)
class Light:
    """Means; see `visard_evaluation.kept.Kept`."""

    levels: Estimate
    direction_degrees: Estimate


@dataclass(frozen=True, kw_only=True)
class OutsideFace:
    """Means of what changed there; see `visard_evaluation.measures.Outside`."""

    levels: Estimate
    colour_delta_e: Estimate
    levels_beyond_crop: Estimate


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """What `Published` says of the classifier, of another network."""

    classifier_accuracy: Estimate
    swap_success: Estimate


@dataclass(frozen=True, kw_only=True)
class Naturalness:
    """How natural results look; without a value where there are too few people.

    Attributes:
        kernel_distance: of results to other people's originals.
        kernel_distance_of_originals: among halves of the originals.
    """

    kernel_distance: Estimate
    kernel_distance_of_originals: Estimate


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found of some photos.

    Attributes:
        n: faces.
        by_gender: of the faces with a label, by that, and of the others by their apparent gender.
        overall: of all.
        detection_preserved: the share of results in which the detector sees a face in the same place.
        detection_preserved_yunet: a second detector, of originals in which it sees one.
        detection_preserved_both: both detectors, likewise.
        identity: by the recogniser's name, of the faces as published.
        identity_full: likewise, of the whole crops.
        control: likewise, of the originals whose face is painted over.
        swap_back: likewise, after the opposite generator.
        learned: likewise, after an attacker has learned.
        restored: likewise, on request; None where nobody asked, or there are too few people.
        linkability: likewise, of photos of one person.
        landmark_drift_percent: a mean.
        pose_drift_degrees: how heads turned.
        expression_drift_percent: how mouths and eyes opened.
        light: how the light on the skin changed.
        skin_delta_e: a mean; see `visard_evaluation.kept.Kept`.
        outside_face: what changed around the face.
        second_classifier: on request.
        naturalness: on request.
    """

    n: int
    by_gender: Mapping[Gender, Published]
    overall: Published
    detection_preserved: Estimate
    detection_preserved_yunet: Estimate
    detection_preserved_both: Estimate
    identity: Mapping[str, Compared]
    identity_full: Mapping[str, Searched]
    control: Mapping[str, Control]
    swap_back: Mapping[str, Compared]
    learned: Mapping[str, Learned]
    restored: Mapping[str, Restored | None]
    linkability: Mapping[str, Linked]
    landmark_drift_percent: Estimate
    pose_drift_degrees: PoseDrift
    expression_drift_percent: ExpressionDrift
    light: Light
    skin_delta_e: Estimate
    outside_face: OutsideFace
    second_classifier: SecondOpinion | None
    naturalness: Naturalness | None

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON has them: names → values, and under `intervals` the same names → [low, high].

        Figures by gender stand as `swap_success.female`, not `female.swap_success`. None for a value or an interval
        that the sample does not allow; what nobody asked for is empty.
        """
        return {
            "n": self.n,
            **self._read(lambda estimate: estimate.value),
            "intervals": self._read(lambda estimate: estimate.interval and list(estimate.interval)),
        }

    def _read(self, read: Callable[[Estimate], Any]) -> dict[str, Any]:
        names = [field.name for field in fields(Published)]
        by_gender = {
            name: {gender: read(getattr(part, name)) for gender, part in self.by_gender.items()} for name in names
        }
        others = (field.name for field in fields(self) if field.name not in ("n", "by_gender"))
        return {**by_gender, **{name: _read(getattr(self, name), read) for name in others}}


def _read(node: Any, read: Callable[[Estimate], Any]) -> Any:
    """The same tree with a part of every estimate, without what is None."""
    if isinstance(node, Estimate):
        return read(node)
    if node is None:
        return {}
    if isinstance(node, Mapping):
        return {key: _read(value, read) for key, value in node.items()}
    parts = {field.name: getattr(node, field.name) for field in fields(node)}
    return {name: _read(part, read) for name, part in parts.items() if part is not None}
