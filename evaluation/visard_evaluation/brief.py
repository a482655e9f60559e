"""An evaluation for somebody who knows nothing of figures: who is still recognised, by what, how often, what it means.

These sentences come first, before those of `sentences` and the table. `markdown` and `html` lay them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visard_evaluation.estimates import difference, share
from visard_evaluation.wording import reasons

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from visard_evaluation.search import Identity
    from visard_evaluation.summary import Evaluation

_NAMED = 5  # files; the worst cases have more

_ATTACKED = (
    "An attacker who runs the swap backwards, or who learned from other people's photos, finds more than these "
    "surroundings give away."
)
_EXPOSED = (
    "What that means: the results still show something of the people's own faces. Somebody who has such a program and "
    "photos of these people can find some of them. Do not treat the results as anonymous."
)
_SOME = (
    "What that means: somebody who has such a program and photos of these people can still find some of them. This "
    "sample does not show that their faces give them away; hair, clothes and place stay as they were. Leave out the "
    "photos of people who must not be found."
)
_NOBODY = "What that means: these programs recognise nobody in this sample."
_NO_PROOF = "Other programs may recognise more, and so may people who know somebody: these numbers are no proof."


def brief(evaluation: Evaluation) -> Iterator[str]:
    """Say in a paragraph for each recogniser whom it still recognises, and at last what that means."""
    anybody, exposed = False, False
    for name, identity in evaluation.identities.items():
        hits, surroundings = (_recognised(evaluation, identity, kind) for kind in ("anonymised", "control"))
        control = difference(hits, surroundings)
        more = control.low is not None and control.low > 0
        attacked = _attacked(evaluation, name)
        anybody |= any(hits)
        exposed |= more or attacked
        attack = [_ATTACKED] if attacked else []
        yield " ".join([_who(evaluation, name, hits), _surroundings(surroundings, more=more), *attack])
    if evaluation.errors:
        count = sum(evaluation.errors.values())
        photos = "1 photo is" if count == 1 else f"{count} photos are"
        yield f"{photos} in none of these numbers: {reasons(evaluation.errors)}."
    yield f"{_EXPOSED if exposed else _SOME if anybody else _NOBODY} {_NO_PROOF}"


def _recognised(evaluation: Evaluation, identity: Identity, kind: str) -> list[bool]:
    """Whether a recogniser takes a picture for its original's person, or finds that person in a search."""
    searched = evaluation.settings.people > 1  # otherwise there is nobody else to find
    return [match.verified or (searched and match.rank1) for match in identity.matches[kind]]


def _who(evaluation: Evaluation, name: str, hits: Sequence[bool]) -> str:
    n, found = len(hits), sum(hits)
    how = (
        "It takes a face for the same person as in the original, or finds that person in a search among all originals."
    )
    recognised = (
        f"After anonymising, {found or 'none'} of {n} face{'s' if n > 1 else ''} {'is' if found < 2 else 'are'}"
    )
    if not found:
        return f"{recognised} recognised by {name}, a program that compares faces."
    names = [f"“{each.photo.name}”" for each, hit in zip(evaluation.measures, hits, strict=True) if hit]
    more = f" and {found - _NAMED} more" if found > _NAMED else ""
    interval = share(hits).interval
    assert interval is not None  # noqa: S101 - there is a face
    low, high = (round(100 * end) for end in interval)
    return (
        f"{recognised} still recognised by {name}, a program that compares faces: {', '.join(names[:_NAMED])}{more}. "
        f"{how} In other photos like these it may be {low} to {high} of 100."
    )


def _surroundings(hits: Sequence[bool], *, more: bool) -> str:
    words = f"By hair, ears and outline alone, with the faces painted over, it recognises {sum(hits)} of {len(hits)}"
    if more:
        return f"{words}, so the faces themselves still give people away."
    return f"{words}. This sample does not show that the faces themselves give anybody away."


def _attacked(evaluation: Evaluation, name: str) -> bool:
    """Whether an attack finds more than the surroundings give away."""
    figures = evaluation.figures
    restored = figures.restored[name]
    differences = [figures.swap_back[name].rank1_minus_control, figures.learned[name].rank1_minus_control]
    differences += [] if restored is None else [restored.rank1_minus_control]
    return any(each.low is not None and each.low > 0 for each in differences)
