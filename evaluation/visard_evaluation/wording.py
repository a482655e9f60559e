"""The texts of a report: how figures are written, what they do not prove, the worst cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visard_evaluation.folds import FEWEST_PEOPLE, FOLDS
from visard_evaluation.sentences import points

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from visard_evaluation.figures import Figures
    from visard_evaluation.rows import Kind, Row
    from visard_evaluation.summary import Case, Evaluation

_UNITS: Mapping[Kind, str] = {"share": " %", "points": " points", "percent": " %", "degrees": "°"}
_ERRORS = {  # an error's name → what it says of a photo
    "CorruptPhoto": "the file is damaged",
    "FaceTooSmall": "the largest face is too small",
    "NoFace": "no face was found",
    "NotSwapped": "the largest face was not swapped",
    "Withheld": "there is no result",
}
_MANY_PEOPLE = 1000
_SMALL = 100  # below this many faces, one face is a percentage point or more


def cell(figures: Figures, row: Row) -> str:
    """Write one figure with its interval, such as ``53.1 % (36.4–69.1)``; a dash where there is none."""
    estimate = row.read(figures)
    if estimate.value is None:
        return "–"
    text, interval = f"{_number(estimate.value, row.kind)}{_UNITS.get(row.kind, '')}", estimate.interval
    dash = " to " if row.kind == "points" else "–"
    return text if interval is None else f"{text} ({dash.join(_number(edge, row.kind) for edge in interval)})"


def caveats(evaluation: Evaluation, *, results: bool = False) -> Iterator[str]:
    """Say what the figures do not.

    Args:
        evaluation: what was found.
        results: whether finished results were judged, not fresh ones.
    """
    n, settings = evaluation.figures.n, evaluation.settings
    small = f": a small sample, in which one face is {100 / n:.1f} percentage points" if n < _SMALL else ""
    yield (
        f"{n} faces{small}. Intervals are 95 % (Wilson for shares, Student for means) and take the photos for "
        "independent: several photos of one person make them narrower than they should be."
    )
    yield (
        "“Apparent gender” is a classifier's opinion of a picture, not a statement about a person. The judge of the "
        "swap is the same classifier that steers it, so that swap success says less than a second, independent judge "
        "does."
    )
    if settings.people < FEWEST_PEOPLE:
        yield (
            f"{settings.people} people are too few for an attacker to learn from: those who learn, and the distance "
            f"from real faces, need at least {FEWEST_PEOPLE}."
        )
    elif settings.people < _MANY_PEOPLE:
        yield (
            f"Attackers who learn had the pairs of fewer than {settings.people} people, in {FOLDS} folds: one with "
            "thousands finds more."
        )
    for name, guessing in evaluation.guessing.items():
        threshold = evaluation.identities[name].threshold
        strangers = "–" if guessing.false_match is None else f"{100 * guessing.false_match:.1f} %"
        yield (
            f"{name}: threshold {threshold:g}, at which {strangers} of the pairs of different people's "
            f"originals match too. Guessing would find {100 * guessing.rank1_chance:.1f} % in the gallery of "
            f"{settings.gallery} originals; a larger gallery makes a search harder."
        )
    yield (
        "A recogniser that no longer matches is no proof: other recognisers, people who know the person, hair, clothes "
        "and place may still tell who it is. Only the largest face of each photo is measured."
    )
    if results:
        yield "The results were made before; that each face was meant to become the opposite gender is assumed."
    if evaluation.errors:
        count = sum(evaluation.errors.values())
        has = "1 photo has" if count == 1 else f"{count} photos have"
        yield f"{has} no figures: {reasons(evaluation.errors)}."


def reasons(errors: Mapping[str, int]) -> str:
    """Say why photos have no figures, the most frequent reason first.

    Args:
        errors: how many photos, by the error's name.
    """
    ordered = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{_ERRORS.get(name, name)} ({count})" for name, count in ordered)


def worst_cases(evaluation: Evaluation) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """List headings, each with (file name, value) of the worst cases of that kind; kinds without any are left out."""
    worst = evaluation.worst
    for name in evaluation.identities:
        yield f"Closest to the original ({name}: distance)", _cases(worst.identity[name], ".3f")
        yield f"Closest after the swap-back attack ({name}: distance)", _cases(worst.swap_back[name], ".3f")
    yield "Largest landmark drift (% of the eyes' distance)", _cases(worst.landmark_drift_percent, ".1f")
    yield "Largest change around the face (grey levels)", _cases(worst.outside_face_levels, ".1f")
    for files, heading in ((worst.not_swapped, "Swap not believed"), (worst.not_detected, "Face no longer detected")):
        if files:
            yield heading, [(file, "") for file in files]


def _cases(cases: Sequence[Case], spec: str) -> list[tuple[str, str]]:
    return [(case.file, format(case.value, spec)) for case in cases]


def _number(value: float, kind: Kind) -> str:
    if kind == "points":
        return points(value)
    if kind == "share":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if kind == "distance" else f"{value:.1f}"
