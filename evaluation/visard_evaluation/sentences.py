"""What was found, in plain sentences: who is still recognised, by what, how often. They come before the table.

`markdown` and `html` lay them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visard_evaluation.estimates import Estimate
    from visard_evaluation.figures import Figures
    from visard_evaluation.summary import Evaluation

_FEWEST = 5  # faces below which a group is not named: any share of it has an interval over half the scale


def sentences(evaluation: Evaluation) -> Iterator[str]:
    """Say what the figures of an evaluation mean for the people in the photos."""
    figures, gallery = evaluation.figures, evaluation.settings.gallery
    n = figures.n
    for name in evaluation.identities:
        identity, back = figures.identity[name], figures.swap_back[name]
        same = _counted(identity.verification, n)
        yield f"{name} takes {same} published faces for the same person as their original."
        found, context = _counted(identity.rank1, n), _counted(figures.control[name].rank1, n)
        yield (
            f"A search with {name} among the {gallery} originals finds the right person for {found} published faces. "
            f"Hair, ears and outline alone lead it to {context}, with the face painted over: "
            f"{_verdict(identity.rank1_minus_control)}."
        )
        yield from _most_exposed(evaluation, name)
        yield (
            f"Once an attacker has put the published faces through the opposite generator, {name} finds "
            f"{_counted(back.rank1, n)}: {_verdict(back.rank1_minus_control)}."
        )
        yield from _learned(evaluation, name)
        yield from _linked(evaluation, name)
    yield from _kept(figures)
    if n == 1:
        yield "One face says nothing about others."


def _most_exposed(evaluation: Evaluation, name: str) -> Iterator[str]:
    """Name the group that the search finds most often, where groups differ at all."""
    parts = [
        (part.identity[name].rank1, column, value, part.n)
        for column, values in evaluation.groups.items()
        for value, part in values.items()
        if part.n >= _FEWEST
    ]
    if len({found.value for found, *_ in parts}) > 1:
        found, column, value, n = max(parts, key=lambda each: each[0].value or 0.0)
        yield f"It finds most among {column} “{value}”: {_counted(found, n)}."


def _learned(evaluation: Evaluation, name: str) -> Iterator[str]:
    """What attackers find who learned from other people's pairs."""
    n, learned, restored = evaluation.figures.n, evaluation.figures.learned[name], evaluation.figures.restored[name]
    if learned.rank1.value is None:
        people = evaluation.settings.people
        yield f"{people} people are too few for an attacker to learn from: nothing is said about one who learns."
        return
    yield (
        f"An attacker who learned from other people's pairs how anonymisation moves {name}'s descriptors finds "
        f"{_counted(learned.rank1, n)}; one who learned from context alone finds "
        f"{_counted(learned.control_rank1, n)}: {_verdict(learned.rank1_minus_control)}."
    )
    if restored is not None:
        yield (
            f"In faces restored by a network that learned from other people's pairs, {name} finds "
            f"{_counted(restored.rank1, n)}; in those restored from context alone "
            f"{_counted(restored.control_rank1, n)}: {_verdict(restored.rank1_minus_control)}."
        )


def _linked(evaluation: Evaluation, name: str) -> Iterator[str]:
    """Whether two photos of one person can be told to be of one person."""
    n, links = evaluation.settings.linkable, evaluation.figures.linkability[name]
    if not n:
        return
    yield (
        f"Of the anonymised photos of people with several, {name} finds {_counted(links.random, n)} nearest to another "
        f"one of the same person, with personas drawn at random; by context alone {_counted(links.control, n)}: "
        f"{_verdict(links.random_minus_control)}."
    )
    if links.keyed is not None and links.keyed.value is not None:
        keyed = f"{100 * links.keyed.value:.1f} %"
        yield f"With one key for each person, to give all its photos one persona, it is {keyed}."


def _kept(figures: Figures) -> Iterator[str]:
    """Whether there is still a face, and of which apparent gender."""
    seen = _counted(figures.detection_preserved, figures.n)
    swapped = _counted(figures.overall.swap_success, figures.n)
    yield f"A face is still found in {seen} results, and the classifier calls {swapped} the intended gender."
    if figures.second_classifier is not None:
        second = _counted(figures.second_classifier.swap_success, figures.n)
        yield f"A second classifier, which steered no swap, calls {second} the intended gender."
    if figures.naturalness is not None and figures.naturalness.kernel_distance.value is not None:
        value, low, high = _known(figures.naturalness.kernel_distance)
        yield (
            f"As a whole, results lie {value:.3f} from other people's real faces (kernel distance, 95 % interval "
            f"{low:.3f} to {high:.3f}); halves of the real faces lie "
            f"{figures.naturalness.kernel_distance_of_originals.value:.3f} from each other."
        )


def _counted(share: Estimate, n: int) -> str:
    """Write a share of `n` faces, such as ``5 of 32 (15.6 %, 95 % interval 6.9–31.8 %)``."""
    value, low, high = _known(share)
    return f"{round(value * n)} of {n} ({100 * value:.1f} %, 95 % interval {100 * low:.1f}–{100 * high:.1f} %)"


def _verdict(difference: Estimate) -> str:
    """Say whether a difference to the control can be told from none."""
    value, low, high = _known(difference)
    span = f"{points(value)} points, {points(low)} to {points(high)}"
    if low > 0:
        return f"the faces give away more than their surroundings do ({span})"
    if high < 0:
        return f"less than the surroundings of the originals give away ({span})"
    return f"this sample shows no difference to the surroundings alone ({span})"


def _known(estimate: Estimate) -> tuple[float, float, float]:
    """A figure and its interval, which shares of one face or more have."""
    if estimate.value is None or estimate.interval is None:
        raise ValueError("there is no figure without a face")
    return estimate.value, *estimate.interval


def points(value: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
