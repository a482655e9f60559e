"""The rows of an evaluation's table: what each figure is called, what it means, and where it stands.

It knows nothing about how they are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Kind = Literal["share", "points", "percent", "degrees", "distance", "levels", "plain"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: what it is called, what it means, and where it stands.

    Attributes:
        label: name.
        meaning: one sentence.
        path: keys within the figures.
        kind: how it is written.
        better: which values are good for privacy or utility; empty where neither is.
    """

    label: str
    meaning: str
    path: tuple[str, ...]
    kind: Kind
    better: Literal["high", "low", ""] = ""

    def value(self, figures: Mapping[str, Any]) -> float | None:
        """The figure itself; None where the sample has none."""
        return cast("float | None", self._read(figures))

    def interval(self, figures: Mapping[str, Any]) -> tuple[float, float] | None:
        """Its 95 % interval, None where there is none."""
        edges = self._read(figures["intervals"])
        return None if edges is None else (edges[0], edges[1])

    def _read(self, tree: Any) -> Any:
        for key in self.path:
            tree = tree[key]
        return tree


_ABOVE = "… above context alone"


def rows(figures: Mapping[str, Any]) -> Iterator[Row]:
    """List the figures of an evaluation in the order of reading: the published ones, then privacy, then utility."""
    yield from _published(figures)
    for name, recogniser in figures["settings"]["recognisers"].items():
        yield from _searches(name, recogniser["threshold"])
        yield from _attackers(figures, name)
        yield from _links(figures, name)
        yield Row(
            label=f"distance ({name})",
            meaning="Mean Euclidean distance of the descriptors of original and result.",
            path=("identity", name, "distance"),
            kind="distance",
            better="high",
        )
    yield from _kept()
    if "kernel_distance" in figures["naturalness"]:
        yield Row(
            label="distance from real faces",
            meaning="Kernel distance (KID) of results to other people's originals; 0 where they cannot be told apart.",
            path=("naturalness", "kernel_distance"),
            kind="distance",
            better="low",
        )
        yield Row(
            label="… of real faces among themselves",
            meaning="The same between halves of the originals: the mean and the range of 95 % of all halvings.",
            path=("naturalness", "kernel_distance_of_originals"),
            kind="distance",
        )


def _published(figures: Mapping[str, Any]) -> Iterator[Row]:
    yield Row(
        label="classifier right",
        meaning="Faces whose label and apparent gender agree, before anything is changed.",
        path=("overall", "classifier_accuracy"),
        kind="share",
    )
    yield Row(
        label="swap success",
        meaning="Results that the classifier calls the intended gender.",
        path=("overall", "swap_success"),
        kind="share",
        better="high",
    )
    if "second_classifier" in figures["settings"]:
        yield Row(
            label="second classifier right",
            meaning="Faces whose label a network that steered no swap agrees with, before anything is changed.",
            path=("second_classifier", "classifier_accuracy"),
            kind="share",
        )
        yield Row(
            label="swap success (second classifier)",
            meaning="Results that this network calls the intended gender.",
            path=("second_classifier", "swap_success"),
            kind="share",
            better="high",
        )
    yield Row(
        label="similarity",
        meaning="The published formula: cosine of a −1..1 input with a 0..255 output. For comparison with published "
        "tables only; an unchanged face does not score 100 %.",
        path=("overall", "similarity_percent"),
        kind="percent",
    )


def _searches(name: str, threshold: float) -> Iterator[Row]:
    yield Row(
        label=f"still matched ({name})",
        meaning=f"Verification: results closer to their original than {name}'s own threshold, {threshold:g}.",
        path=("identity", name, "verification"),
        kind="share",
        better="low",
    )
    yield Row(
        label=f"found by search ({name})",
        meaning="Rank-1 retrieval: results whose nearest neighbour among all originals is the same person. The very "
        "photo each result was made of is among them, the easiest case for an attacker.",
        path=("identity", name, "rank1"),
        kind="share",
        better="low",
    )
    yield _difference(
        name,
        ("identity", name, "rank1_minus_control"),
        "Difference to the same search with the original's face painted over: what is more than hair, ears and outline "
        "give away. Paired by photo.",
    )
    yield Row(
        label=f"context alone found ({name})",
        meaning="The control: originals whose face is painted over. No anonymisation of the face can hide this.",
        path=("control", name, "rank1"),
        kind="share",
    )
    yield Row(
        label=f"found by the whole crop ({name})",
        meaning="Rank-1 retrieval where the recogniser is shown the whole aligned crop on both sides, with hair.",
        path=("identity_full", name, "rank1"),
        kind="share",
        better="low",
    )
    yield _difference(
        name, ("identity_full", name, "rank1_minus_control"), "Difference to the control, shown likewise."
    )
    yield Row(
        label=f"context alone found by the whole crop ({name})",
        meaning="The control of the whole crop.",
        path=("control", name, "rank1_full"),
        kind="share",
    )


def _attackers(figures: Mapping[str, Any], name: str) -> Iterator[Row]:
    yield Row(
        label=f"matched after swap-back ({name})",
        meaning="Verification after an attacker has put the published face through the opposite generator.",
        path=("swap_back", name, "verification"),
        kind="share",
        better="low",
    )
    yield Row(
        label=f"found after swap-back ({name})",
        meaning="Rank-1 retrieval after that attack.",
        path=("swap_back", name, "rank1"),
        kind="share",
        better="low",
    )
    yield _difference(name, ("swap_back", name, "rank1_minus_control"), "Difference to the control.")
    yield Row(
        label=f"found by a learned map ({name})",
        meaning="Rank-1 retrieval by an attacker who learned from other people's pairs how descriptors move, and moves "
        "them back by ridge regression.",
        path=("learned", name, "rank1"),
        kind="share",
        better="low",
    )
    yield _difference(
        name,
        ("learned", name, "rank1_minus_control"),
        "Difference to an attacker who learned in the same way from painted originals.",
    )
    if "rank1" in figures["restored"][name]:
        yield Row(
            label=f"found in restored pictures ({name})",
            meaning="Rank-1 retrieval after a network that learned from other people's pairs has restored the faces.",
            path=("restored", name, "rank1"),
            kind="share",
            better="low",
        )
        yield _difference(
            name,
            ("restored", name, "rank1_minus_control"),
            "Difference to a network that learned in the same way from painted originals.",
        )
        yield Row(
            label=f"found in reduced originals ({name})",
            meaning="What can be found at all at the resolution of that network: the originals, as small.",
            path=("restored", name, "rank1_of_reduced_originals"),
            kind="share",
        )


def _links(figures: Mapping[str, Any], name: str) -> Iterator[Row]:
    if not figures["settings"]["linkable"]:
        return
    for personas, key in (("random personas", "random"), ("a key for each person", "keyed")):
        if key in figures["linkability"][name]:
            yield Row(
                label=f"photos linked, {personas} ({name})",
                meaning="Of anonymised photos whose person has another one, those whose nearest other anonymised photo "
                "is of the same person.",
                path=("linkability", name, key),
                kind="share",
                better="low" if key == "random" else "",
            )
            yield _difference(
                name, ("linkability", name, f"{key}_minus_control"), "Difference to painted originals linked likewise."
            )


def _difference(name: str, path: tuple[str, ...], meaning: str) -> Row:
    return Row(label=f"{_ABOVE} ({name})", meaning=meaning, path=path, kind="points", better="low")


def _kept() -> Iterator[Row]:
    for key, by in (("", ""), ("_yunet", " by YuNet"), ("_both", " by both")):
        yield Row(
            label=f"face still detected{by}",
            meaning=f"Results in which {'both see' if key == '_both' else 'the detector sees'} a face in the same place"
            f"{', of originals in which it saw one' if key else ''}.",
            path=(f"detection_preserved{key}",),
            kind="share",
            better="high",
        )
    for label, meaning, path, kind in _DRIFTS:
        yield Row(label=label, meaning=meaning, path=path, kind=kind, better="low")


_DRIFTS: tuple[tuple[str, str, tuple[str, ...], Kind], ...] = (
    (
        "landmark drift",
        "Mean shift of the 68 landmarks, in percent of the distance between the eyes.",
        ("landmark_drift_percent",),
        "percent",
    ),
    *(
        (
            f"pose drift, {angle}",
            f"Median change of how far the head is turned {motion}, from 14 landmarks and a generic head.{note}",
            ("pose_drift_degrees", angle),
            "degrees",
        )
        for angle, motion, note in (
            ("yaw", "to the side", ""),
            ("pitch", "up or down", " A jaw or nose that becomes longer reads as a nod."),
            ("roll", "in the picture", ""),
        )
    ),
    (
        "mouth opening drift",
        "Mean change of the gap between the lips, in percent of the distance between the eyes.",
        ("expression_drift_percent", "mouth_opening"),
        "percent",
    ),
    (
        "eye opening drift",
        "Mean change of the gap between the lids, likewise.",
        ("expression_drift_percent", "eye_opening"),
        "percent",
    ),
    (
        "light drift",
        "Mean absolute difference in grey levels (0..255) of the light on the skin, a plane fitted to each side.",
        ("light", "levels"),
        "levels",
    ),
    (
        "light's direction",
        "How far the direction turned in which that plane rises, over faces that are lit from a side.",
        ("light", "direction_degrees"),
        "degrees",
    ),
    (
        "skin's colour shift",
        "CIE 1976 ΔE between the skin's mean colours; about 2 can just be seen.",
        ("skin_delta_e",),
        "plain",
    ),
    (
        "change around the face",
        "Mean absolute difference in grey levels (0..255) of hair, neck and background within the crop.",
        ("outside_face", "levels"),
        "levels",
    ),
    (
        "colour shift around the face",
        "CIE 1976 ΔE between the mean colours there.",
        ("outside_face", "colour_delta_e"),
        "plain",
    ),
    (
        "change beyond the crops",
        "Mean absolute difference in grey levels of the photo outside all faces' crops.",
        ("outside_face", "levels_beyond_crop"),
        "levels",
    ),
)
