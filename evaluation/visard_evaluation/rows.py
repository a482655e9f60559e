"""The rows of an evaluation's table: the name of each figure, its meaning, and its place in the JSON.

`markdown` and `html` lay them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from visard_evaluation.estimates import Estimate
from visard_evaluation.figures import Figures, Linked, Naturalness, Restored, SecondOpinion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visard_evaluation.summary import Evaluation

Kind = Literal["share", "points", "percent", "degrees", "distance", "levels", "plain"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: what it is called, what it means, and where it stands.

    Attributes:
        label: name.
        meaning: one sentence.
        read: finds it in the figures; without a value where the sample has none.
        kind: how it is written.
        better: which values are good for privacy or utility; empty where neither is.
    """

    label: str
    meaning: str
    read: Callable[[Figures], Estimate]
    kind: Kind
    better: Literal["high", "low", ""] = ""


_ABOVE = "… above context alone"
_NOTHING = Estimate(None)


def rows(evaluation: Evaluation) -> Iterator[Row]:
    """List the figures of an evaluation in the order of reading: the published ones, then privacy, then utility."""
    yield from _published(evaluation)
    for name, identity in evaluation.identities.items():
        yield from _searches(name, identity.threshold)
        yield from _attackers(evaluation.figures, name)
        yield from _links(evaluation, name)
        yield _distance(name)
    yield from _kept()
    if evaluation.figures.naturalness is not None:
        yield Row(
            label="distance from real faces",
            meaning="Kernel distance (KID) of results to other people's originals; 0 where they cannot be told apart.",
            read=_naturalness(lambda part: part.kernel_distance),
            kind="distance",
            better="low",
        )
        yield Row(
            label="… of real faces among themselves",
            meaning="The same between halves of the originals: the mean and the range of 95 % of all halvings.",
            read=_naturalness(lambda part: part.kernel_distance_of_originals),
            kind="distance",
        )


def _published(evaluation: Evaluation) -> Iterator[Row]:
    yield Row(
        label="classifier right",
        meaning="Faces whose label and apparent gender agree, before anything is changed.",
        read=lambda figures: figures.overall.classifier_accuracy,
        kind="share",
    )
    yield Row(
        label="swap success",
        meaning="Results that the classifier calls the intended gender.",
        read=lambda figures: figures.overall.swap_success,
        kind="share",
        better="high",
    )
    if evaluation.settings.second_classifier is not None:
        yield Row(
            label="second classifier right",
            meaning="Faces whose label a network that steered no swap agrees with, before anything is changed.",
            read=_second(lambda part: part.classifier_accuracy),
            kind="share",
        )
        yield Row(
            label="swap success (second classifier)",
            meaning="Results that this network calls the intended gender.",
            read=_second(lambda part: part.swap_success),
            kind="share",
            better="high",
        )
    yield Row(
        label="similarity",
        meaning="The published formula: cosine of a −1..1 input with a 0..255 output. For comparison with published "
        "tables only; an unchanged face does not score 100 %.",
        read=lambda figures: figures.overall.similarity_percent,
        kind="percent",
    )


def _searches(name: str, threshold: float) -> Iterator[Row]:
    yield Row(
        label=f"still matched ({name})",
        meaning=f"Verification: results closer to their original than {name}'s own threshold, {threshold:g}.",
        read=lambda figures: figures.identity[name].verification,
        kind="share",
        better="low",
    )
    yield Row(
        label=f"found by search ({name})",
        meaning="Rank-1 retrieval: results whose nearest neighbour among all originals is the same person. The very "
        "photo each result was made of is among them, the easiest case for an attacker.",
        read=lambda figures: figures.identity[name].rank1,
        kind="share",
        better="low",
    )
    yield _difference(
        name,
        lambda figures: figures.identity[name].rank1_minus_control,
        "Difference to the same search with the original's face painted over: what is more than hair, ears and outline "
        "give away. Paired by photo.",
    )
    yield Row(
        label=f"context alone found ({name})",
        meaning="The control: originals whose face is painted over. No anonymisation of the face can hide this.",
        read=lambda figures: figures.control[name].rank1,
        kind="share",
    )
    yield Row(
        label=f"found by the whole crop ({name})",
        meaning="Rank-1 retrieval where the recogniser is shown the whole aligned crop on both sides, with hair.",
        read=lambda figures: figures.identity_full[name].rank1,
        kind="share",
        better="low",
    )
    yield _difference(
        name,
        lambda figures: figures.identity_full[name].rank1_minus_control,
        "Difference to the control, shown likewise.",
    )
    yield Row(
        label=f"context alone found by the whole crop ({name})",
        meaning="The control of the whole crop.",
        read=lambda figures: figures.control[name].rank1_full,
        kind="share",
    )


def _attackers(figures: Figures, name: str) -> Iterator[Row]:
    yield Row(
        label=f"matched after swap-back ({name})",
        meaning="Verification after an attacker has put the published face through the opposite generator.",
        read=lambda figures: figures.swap_back[name].verification,
        kind="share",
        better="low",
    )
    yield Row(
        label=f"found after swap-back ({name})",
        meaning="Rank-1 retrieval after that attack.",
        read=lambda figures: figures.swap_back[name].rank1,
        kind="share",
        better="low",
    )
    yield _difference(name, lambda figures: figures.swap_back[name].rank1_minus_control, "Difference to the control.")
    yield Row(
        label=f"found by a learned map ({name})",
        meaning="Rank-1 retrieval by an attacker who learned from other people's pairs how descriptors move, and moves "
        "them back by ridge regression.",
        read=lambda figures: figures.learned[name].rank1,
        kind="share",
        better="low",
    )
    yield _difference(
        name,
        lambda figures: figures.learned[name].rank1_minus_control,
        "Difference to an attacker who learned in the same way from painted originals.",
    )
    if figures.restored[name] is not None:
        yield Row(
            label=f"found in restored pictures ({name})",
            meaning="Rank-1 retrieval after a network that learned from other people's pairs has restored the faces.",
            read=_restored(name, lambda part: part.rank1),
            kind="share",
            better="low",
        )
        yield _difference(
            name,
            _restored(name, lambda part: part.rank1_minus_control),
            "Difference to a network that learned in the same way from painted originals.",
        )
        yield Row(
            label=f"found in reduced originals ({name})",
            meaning="What can be found at all at the resolution of that network: the originals, as small.",
            read=_restored(name, lambda part: part.rank1_of_reduced_originals),
            kind="share",
        )


def _links(evaluation: Evaluation, name: str) -> Iterator[Row]:
    if not evaluation.settings.linkable:
        return
    yield from _linked(name, "random personas", lambda part: part.random, lambda part: part.random_minus_control, "low")
    if evaluation.figures.linkability[name].keyed is not None:
        yield from _linked(
            name, "a key for each person", lambda part: part.keyed, lambda part: part.keyed_minus_control, ""
        )


def _linked(
    name: str,
    personas: str,
    share: Callable[[Linked], Estimate | None],
    above: Callable[[Linked], Estimate | None],
    better: Literal["low", ""],
) -> Iterator[Row]:
    yield Row(
        label=f"photos linked, {personas} ({name})",
        meaning="Of anonymised photos whose person has another one, those whose nearest other anonymised photo "
        "is of the same person.",
        read=lambda figures: share(figures.linkability[name]) or _NOTHING,
        kind="share",
        better=better,
    )
    yield _difference(
        name,
        lambda figures: above(figures.linkability[name]) or _NOTHING,
        "Difference to painted originals linked likewise.",
    )


def _distance(name: str) -> Row:
    return Row(
        label=f"distance ({name})",
        meaning="Mean Euclidean distance of the descriptors of original and result.",
        read=lambda figures: figures.identity[name].distance,
        kind="distance",
        better="high",
    )


def _second(read: Callable[[SecondOpinion], Estimate]) -> Callable[[Figures], Estimate]:
    return lambda figures: _NOTHING if figures.second_classifier is None else read(figures.second_classifier)


def _naturalness(read: Callable[[Naturalness], Estimate]) -> Callable[[Figures], Estimate]:
    return lambda figures: _NOTHING if figures.naturalness is None else read(figures.naturalness)


def _restored(name: str, read: Callable[[Restored], Estimate]) -> Callable[[Figures], Estimate]:
    def found(figures: Figures) -> Estimate:
        restored = figures.restored[name]
        return _NOTHING if restored is None else read(restored)

    return found


def _difference(name: str, read: Callable[[Figures], Estimate], meaning: str) -> Row:
    return Row(label=f"{_ABOVE} ({name})", meaning=meaning, read=read, kind="points", better="low")


def _kept() -> Iterator[Row]:
    for by, seen, originals, read in _DETECTORS:
        yield Row(
            label=f"face still detected{by}",
            meaning=f"Results in which {seen} a face in the same place{originals}.",
            read=read,
            kind="share",
            better="high",
        )
    for label, meaning, read, kind in _DRIFTS:
        yield Row(label=label, meaning=meaning, read=read, kind=kind, better="low")


_DETECTORS: tuple[tuple[str, str, str, Callable[[Figures], Estimate]], ...] = (
    ("", "the detector sees", "", lambda figures: figures.detection_preserved),
    (
        " by YuNet",
        "the detector sees",
        ", of originals in which it saw one",
        lambda figures: figures.detection_preserved_yunet,
    ),
    (" by both", "both see", ", of originals in which it saw one", lambda figures: figures.detection_preserved_both),
)
_DRIFTS: tuple[tuple[str, str, Callable[[Figures], Estimate], Kind], ...] = (
    (
        "landmark drift",
        "Mean shift of the 68 landmarks, in percent of the distance between the eyes.",
        lambda figures: figures.landmark_drift_percent,
        "percent",
    ),
    (
        "pose drift, yaw",
        "Median change of how far the head is turned to the side, from 14 landmarks and a generic head.",
        lambda figures: figures.pose_drift_degrees.yaw,
        "degrees",
    ),
    (
        "pose drift, pitch",
        "Median change of how far the head is turned up or down, from 14 landmarks and a generic head. A jaw or nose "
        "that becomes longer reads as a nod.",
        lambda figures: figures.pose_drift_degrees.pitch,
        "degrees",
    ),
    (
        "pose drift, roll",
        "Median change of how far the head is turned in the picture, from 14 landmarks and a generic head.",
        lambda figures: figures.pose_drift_degrees.roll,
        "degrees",
    ),
    (
        "mouth opening drift",
        "Mean change of the gap between the lips, in percent of the distance between the eyes.",
        lambda figures: figures.expression_drift_percent.mouth_opening,
        "percent",
    ),
    (
        "eye opening drift",
        "Mean change of the gap between the lids, likewise.",
        lambda figures: figures.expression_drift_percent.eye_opening,
        "percent",
    ),
    (
        "light drift",
        "Mean absolute difference in grey levels (0..255) of the light on the skin, a plane fitted to each side.",
        lambda figures: figures.light.levels,
        "levels",
    ),
    (
        "light's direction",
        "How far the direction turned in which that plane rises, over faces that are lit from a side.",
        lambda figures: figures.light.direction_degrees,
        "degrees",
    ),
    (
        "skin's colour shift",
        "CIE 1976 ΔE between the skin's mean colours; about 2 can just be seen.",
        lambda figures: figures.skin_delta_e,
        "plain",
    ),
    (
        "change around the face",
        "Mean absolute difference in grey levels (0..255) of hair, neck and background within the crop.",
        lambda figures: figures.outside_face.levels,
        "levels",
    ),
    (
        "colour shift around the face",
        "CIE 1976 ΔE between the mean colours there.",
        lambda figures: figures.outside_face.colour_delta_e,
        "plain",
    ),
    (
        "change beyond the crops",
        "Mean absolute difference in grey levels of the photo outside all faces' crops.",
        lambda figures: figures.outside_face.levels_beyond_crop,
        "levels",
    ),
)
