"""The words of an evaluation: one table, one set of explanations and caveats for the terminal, Markdown and HTML.

It knows nothing about how they are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from visard.evaluation.sentences import points

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Kind = Literal["share", "points", "percent", "degrees", "distance", "levels", "plain"]

_UNITS: Mapping[Kind, str] = {"share": " %", "points": " points", "percent": " %", "degrees": "°"}
_SMALL = 100  # below this many faces, one face is a percentage point or more


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


def rows(figures: Mapping[str, Any]) -> Iterator[Row]:
    """List the figures of an evaluation in the order of reading: the published ones, then privacy, then utility."""
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
    yield Row(
        label="similarity",
        meaning="The published formula: cosine of a −1..1 input with a 0..255 output. For comparison with published "
        "tables only; an unchanged face does not score 100 %.",
        path=("overall", "similarity_percent"),
        kind="percent",
    )
    for name, recogniser in figures["settings"]["recognisers"].items():
        yield Row(
            label=f"still matched ({name})",
            meaning=f"Verification: results closer to their original than {name}'s own threshold, "
            f"{recogniser['threshold']:g}.",
            path=("identity", name, "verification"),
            kind="share",
            better="low",
        )
        yield Row(
            label=f"found by search ({name})",
            meaning="Rank-1 retrieval: results whose nearest neighbour among all originals is the same person. The "
            "very photo each result was made of is among them, the easiest case for an attacker.",
            path=("identity", name, "rank1"),
            kind="share",
            better="low",
        )
        yield Row(
            label=f"… above context alone ({name})",
            meaning="Difference to the same search with the original's face painted over: what is more than hair, ears "
            "and outline give away. Paired by photo.",
            path=("identity", name, "rank1_minus_control"),
            kind="points",
            better="low",
        )
        yield Row(
            label=f"found by the whole crop ({name})",
            meaning="Rank-1 retrieval where the recogniser is shown the whole aligned crop on both sides, with hair.",
            path=("identity_full", name, "rank1"),
            kind="share",
            better="low",
        )
        yield Row(
            label=f"… above context alone ({name})",
            meaning="Difference to the painted originals, shown in the same way.",
            path=("identity_full", name, "rank1_minus_control"),
            kind="points",
            better="low",
        )
        yield Row(
            label=f"context alone found ({name})",
            meaning="The control: originals whose face is painted over. No anonymisation of the face can hide this.",
            path=("control", name, "rank1"),
            kind="share",
        )
        yield Row(
            label=f"context alone found by the whole crop ({name})",
            meaning="The control of the whole crop.",
            path=("control", name, "rank1_full"),
            kind="share",
        )
        yield Row(
            label=f"matched after swap-back ({name})",
            meaning="The same after an attacker has put the published face through the opposite generator.",
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
        yield Row(
            label=f"… above context alone ({name})",
            meaning="Difference to the control.",
            path=("swap_back", name, "rank1_minus_control"),
            kind="points",
            better="low",
        )
        yield Row(
            label=f"distance ({name})",
            meaning="Mean Euclidean distance of the descriptors of original and result.",
            path=("identity", name, "distance"),
            kind="distance",
            better="high",
        )
    yield Row(
        label="face still detected",
        meaning="Results in which the detector sees a face in the same place.",
        path=("detection_preserved",),
        kind="share",
        better="high",
    )
    yield Row(
        label="landmark drift",
        meaning="Mean shift of the 68 landmarks, in percent of the distance between the eyes.",
        path=("landmark_drift_percent",),
        kind="percent",
        better="low",
    )
    for angle, motion, note in (
        ("yaw", "to the side", ""),
        ("pitch", "up or down", " A jaw or nose that becomes longer reads as a nod."),
        ("roll", "in the picture", ""),
    ):
        yield Row(
            label=f"pose drift, {angle}",
            meaning=f"Mean change of how far the head is turned {motion}, estimated from 14 landmarks by "
            f"a generic head.{note}",
            path=("pose_drift_degrees", angle),
            kind="degrees",
            better="low",
        )
    yield Row(
        label="change around the face",
        meaning="Mean absolute difference in grey levels (0..255) of hair, neck and background within the crop.",
        path=("outside_face", "levels"),
        kind="levels",
        better="low",
    )
    yield Row(
        label="colour shift around the face",
        meaning="CIE 1976 ΔE between the mean colours there; about 2 can just be seen.",
        path=("outside_face", "colour_delta_e"),
        kind="plain",
        better="low",
    )
    yield Row(
        label="change beyond the crops",
        meaning="Mean absolute difference in grey levels of the photo outside all faces' crops.",
        path=("outside_face", "levels_beyond_crop"),
        kind="levels",
        better="low",
    )


def cell(figures: Mapping[str, Any], row: Row) -> str:
    """Write one figure with its interval, such as ``53.1 % (36.4–69.1)``; a dash where there is none."""
    value, interval = row.value(figures), row.interval(figures)
    if value is None:
        return "–"
    text = f"{_number(value, row.kind)}{_UNITS.get(row.kind, '')}"
    dash = " to " if row.kind == "points" else "–"
    return text if interval is None else f"{text} ({dash.join(_number(edge, row.kind) for edge in interval)})"


def caveats(figures: Mapping[str, Any], *, results: bool = False) -> Iterator[str]:
    """Say what the figures do not.

    Args:
        figures: of the evaluation.
        results: whether finished results were judged, not fresh ones.
    """
    n = figures["n"]
    small = f": a small sample, in which one face is {100 / n:.1f} percentage points" if n < _SMALL else ""
    yield (
        f"{n} faces{small}. Intervals are 95 % (Wilson for shares, Student for means) and take the photos for "
        "independent: several photos of one person make them narrower than they should be."
    )
    yield (
        "“Apparent gender” is a classifier's opinion of a picture, not a statement about a person. The judge of the "
        "swap is the same classifier that steers it, so that swap success says less than a second, independent judge "
        "would."
    )
    for name, recogniser in figures["settings"]["recognisers"].items():
        identity = figures["identity"][name]
        false_match = identity["false_match"]
        strangers = "–" if false_match is None else f"{100 * false_match:.1f} %"
        yield (
            f"{name}: threshold {recogniser['threshold']:g}, at which {strangers} of the pairs of different people's "
            f"originals match too. Guessing would find {100 * identity['rank1_chance']:.1f} % in the gallery of "
            f"{figures['settings']['gallery']} originals; a larger gallery makes a search harder."
        )
    yield (
        "A recogniser that no longer matches is no proof: other recognisers, people who know the person, hair, clothes "
        "and place may still tell who it is. Only the largest face of each photo is measured."
    )
    if results:
        yield "The results were made before; that each face was meant to become the opposite gender is assumed."
    errors = figures["errors"]
    if errors:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(errors.items()))
        yield f"{sum(errors.values())} photos have no figures ({kinds}) and count in none of them."


def worst_cases(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """List headings, each with (file name, value) of the worst cases of that kind; kinds without any are left out."""
    worst = figures["worst"]
    for name in figures["identity"]:
        yield f"Closest to the original ({name}: distance)", _cases(worst["identity"][name], ".3f")
        yield f"Closest after the swap-back attack ({name}: distance)", _cases(worst["swap_back"][name], ".3f")
    yield "Largest landmark drift (% of the eyes' distance)", _cases(worst["landmark_drift_percent"], ".1f")
    yield "Largest change around the face (grey levels)", _cases(worst["outside_face_levels"], ".1f")
    for key, heading in (("not_swapped", "Swap not believed"), ("not_detected", "Face no longer detected")):
        if worst[key]:
            yield heading, [(file, "") for file in worst[key]]


def _cases(cases: list[dict[str, Any]], spec: str) -> list[tuple[str, str]]:
    return [(case["file"], format(case["value"], spec)) for case in cases]


def _number(value: float, kind: Kind) -> str:
    if kind == "points":
        return points(value)
    if kind == "share":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if kind == "distance" else f"{value:.1f}"
