"""What was found, in plain sentences: who is still recognised, by what, how often. They stand before the table.

It knows nothing about how they are laid out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FEWEST = 5  # faces below which a group is not named: any share of it has an interval over half the scale


def sentences(figures: Mapping[str, Any]) -> Iterator[str]:
    """Say what the figures of an evaluation mean for the people in the photos."""
    n, gallery = figures["n"], figures["settings"]["gallery"]
    for name in figures["settings"]["recognisers"]:
        same = _counted(figures, "identity", name, "verification")
        yield f"{name} takes {same} published faces for the same person as their original."
        found = _counted(figures, "identity", name, "rank1")
        context = _counted(figures, "control", name, "rank1")
        yield (
            f"A search with {name} among the {gallery} originals finds the right person for {found} published faces. "
            f"Hair, ears and outline alone lead it to {context}, with the face painted over: "
            f"{_verdict(figures, 'identity', name)}."
        )
        yield from _most_exposed(figures, name)
        back = _counted(figures, "swap_back", name, "rank1")
        yield (
            f"Once an attacker has put the published faces through the opposite generator, {name} finds {back}: "
            f"{_verdict(figures, 'swap_back', name)}."
        )
        yield from _learned(figures, name)
        yield from _linked(figures, name)
    yield from _kept(figures)
    if n == 1:
        yield "One face says nothing about others."


def _most_exposed(figures: Mapping[str, Any], name: str) -> Iterator[str]:
    """Name the group that the search finds most often, where groups differ at all."""
    parts = [
        (part["identity"][name]["rank1"], column, value, part)
        for column, values in figures["groups"].items()
        for value, part in values.items()
        if part["n"] >= _FEWEST
    ]
    rates = {rate for rate, *_ in parts}
    if len(rates) > 1:
        _, column, value, part = max(parts, key=lambda each: each[0])
        yield f"It finds most among {column} “{value}”: {_counted(part, 'identity', name, 'rank1')}."


def _learned(figures: Mapping[str, Any], name: str) -> Iterator[str]:
    """What attackers find who learned from other people's pairs."""
    if figures["learned"][name]["rank1"] is None:
        people = figures["settings"]["people"]
        yield f"{people} people are too few for an attacker to learn from: nothing is said about one who learns."
        return
    yield (
        f"An attacker who learned from other people's pairs how anonymisation moves {name}'s descriptors finds "
        f"{_counted(figures, 'learned', name, 'rank1')}; one who learned from context alone finds "
        f"{_counted(figures, 'learned', name, 'control_rank1')}: {_verdict(figures, 'learned', name)}."
    )
    if "rank1" in figures["restored"][name]:
        yield (
            f"In faces restored by a network that learned from other people's pairs, {name} finds "
            f"{_counted(figures, 'restored', name, 'rank1')}; in those restored from context alone "
            f"{_counted(figures, 'restored', name, 'control_rank1')}: {_verdict(figures, 'restored', name)}."
        )


def _linked(figures: Mapping[str, Any], name: str) -> Iterator[str]:
    """Whether two photos of one person can be told to be of one person."""
    settings, links = figures["settings"], figures["linkability"][name]
    n = settings["linkable"]
    if not n:
        return
    random, control = (_counted(figures, "linkability", name, kind, n=n) for kind in ("random", "control"))
    yield (
        f"Of the anonymised photos of people with several, {name} finds {random} nearest to another one of the same "
        f"person, with personas drawn at random; by context alone {control}: "
        f"{_verdict(figures, 'linkability', name, key='random_minus_control')}."
    )
    if links.get("keyed") is not None:
        yield f"With one key for each person, to give all its photos one persona, it is {100 * links['keyed']:.1f} %."


def _kept(figures: Mapping[str, Any]) -> Iterator[str]:
    """Whether there is still a face, and of which apparent gender."""
    seen = _counted(figures, "detection_preserved")
    swapped = _counted(figures, "overall", "swap_success")
    yield f"A face is still found in {seen} results, and the classifier calls {swapped} the intended gender."
    if figures["second_classifier"].get("swap_success") is not None:
        second = _counted(figures, "second_classifier", "swap_success")
        yield f"A second classifier, which steered no swap, calls {second} the intended gender."
    value = figures["naturalness"].get("kernel_distance")
    if value is not None:
        low, high = figures["intervals"]["naturalness"]["kernel_distance"]
        yield (
            f"As a whole, results lie {value:.3f} from other people's real faces (kernel distance, 95 % interval "
            f"{low:.3f} to {high:.3f}); halves of the real faces lie "
            f"{figures['naturalness']['kernel_distance_of_originals']:.3f} from each other."
        )


def _counted(figures: Mapping[str, Any], *path: str, n: int | None = None) -> str:
    """Write a share of all faces, such as ``5 of 32 (15.6 %, 95 % interval 6.9–31.8 %)``."""
    value, (low, high) = _read(figures, path), _read(figures["intervals"], path)
    n = figures["n"] if n is None else n
    return f"{round(value * n)} of {n} ({100 * value:.1f} %, 95 % interval {100 * low:.1f}–{100 * high:.1f} %)"


def _verdict(figures: Mapping[str, Any], *path: str, key: str = "rank1_minus_control") -> str:
    """Say whether a difference to the control can be told from none."""
    value, (low, high) = _read(figures, (*path, key)), _read(figures["intervals"], (*path, key))
    span = f"{points(value)} points, {points(low)} to {points(high)}"
    if low > 0:
        return f"the faces give away more than their surroundings do ({span})"
    if high < 0:
        return f"less than the surroundings of the originals give away ({span})"
    return f"this sample shows no difference to the surroundings alone ({span})"


def points(value: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def _read(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
