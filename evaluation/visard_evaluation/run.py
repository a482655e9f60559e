"""One evaluation from photos to figures: makes the results, or reads them, and has them judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from visard.options import Options
from visard_errors import DataError, ServerError
from visard_evaluation.folds import FOLDS
from visard_evaluation.judges import Judges
from visard_evaluation.keyed import describe_keyed
from visard_evaluation.measures import Measures, in_order, measure_many
from visard_evaluation.recognisers import View
from visard_evaluation.search import people_of
from visard_evaluation.summary import Evaluation, summarise
from visard_evaluation.thumbnails import enlarge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Protocol

    from visard.blocking import Client
    from visard_evaluation.labels import LabelledPhoto
    from visard_evaluation.recognisers import Recogniser

    Item = TypeVar("Item")

    class Progress(Protocol):
        """Counts what passes through it."""

        def __call__(self, items: Iterator[Item], what: str, total: int, /) -> Iterable[Item]:
            """Yield the items."""


OPTIONS = Options(faces="largest", unswapped="show", identity=False)  # what the models do, whether it is good or not


def evaluate(
    photos: Sequence[LabelledPhoto],
    client: Client,
    *,
    results: Path | None = None,
    judges: Judges | None = None,
    groups: Sequence[str] = (),
    progress: Progress = lambda items, what, total: items,
) -> Evaluation:
    """Anonymise photos, or take the results that a folder has of them, and measure; see `summarise`.

    Args:
        photos: what `find_photos` found.
        client: reaches the models; also for finished results, which its classifier judges and its generators attack.
        results: folder of finished results by the photos' names.
        judges: who judges; dlib alone by default.
        groups: columns of the manifest to split the figures by; see `choose_groups`.
        progress: wraps what each stage goes through, with the stage's name and how many there are.

    Raises:
        ServerError: no photo could be measured, because of the server.
        DataError: no photo could be measured.
        MissingExtra: scipy, or what a judge needs, is not installed.
    """
    from visard_evaluation.pairs import compare_many

    judges = judges or Judges()
    if results is None:
        outcomes = client.anonymize_many((photo.path for photo in photos), OPTIONS)
    else:
        outcomes = compare_many(photos, results, client.swap)
    measured: list[Measures] = []
    errors: list[Exception] = []
    for item in progress(measure_many(photos, outcomes, judges, client.swap), "Measuring", len(photos)):
        if isinstance(item, Measures):
            measured.append(item)
        else:
            errors.append(item)
    if not measured:
        raise _nothing(errors)
    people, keyed = people_of(measured), None
    if results is None and len(set(people)) < len(people):
        again = describe_keyed(measured, people, client, judges.recognisers)
        keyed = list(progress(again, "With keys", len(measured)))
    restored = _restored(measured, people, judges.recognisers, progress) if judges.restore else None
    return summarise(measured, errors, judges, groups, keyed=keyed, restored=restored)


def _restored(
    measured: Sequence[Measures], people: Sequence[str], recognisers: Sequence[Recogniser], progress: Progress
) -> Mapping[str, Mapping[str, NDArray[np.float64]]] | None:
    """By the recogniser's name, descriptors of restored pictures by their kind; None where there are too few people."""
    from visard_evaluation.restore import STEPS, restore

    kept = [each.thumbnails for each in measured if each.thumbnails is not None]
    clear, published, control = np.moveaxis(np.stack(kept), 1, 0)
    pictures = {"reduced": clear}
    for kind, seen, what in (
        ("restored", published, "Learning to restore"),
        ("restored_control", control, "Learning from context alone"),
    ):
        made = restore(seen, clear, people, lambda steps, what=what: progress(steps, what, FOLDS * STEPS))  # type: ignore[misc]
        if made is None:
            return None
        pictures[kind] = made
    found: dict[str, dict[str, NDArray[np.float64]]] = {recogniser.name: {} for recogniser in recognisers}
    for kind, faces in pictures.items():
        described = list(in_order(lambda face: _describe(face, recognisers), faces))
        for index, recogniser in enumerate(recognisers):
            found[recogniser.name][kind] = np.stack([each[index] for each in described])
    return found


def _describe(thumbnail: NDArray[np.uint8], recognisers: Sequence[Recogniser]) -> list[NDArray[np.float64]]:
    from visard_preprocess.align import finder

    face = enlarge(thumbnail)
    view = View(aligned=face, landmarks=finder().landmarks(face))
    return [recogniser.describe([view])[0] for recogniser in recognisers]


def _nothing(errors: Sequence[Exception]) -> Exception:
    """The error to raise where every photo failed: the server's, because it can be fixed, before the photos'."""
    server = [error for error in errors if isinstance(error, ServerError)]
    if server:
        return server[0]
    kinds = ", ".join(sorted({type(error).__name__ for error in errors}))
    return DataError(f"none of {len(errors)} photos could be measured ({kinds}): {errors[0]}")
