"""One evaluation from photos to figures; the only file that knows both how results are made and how they are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visard.evaluation.measures import Measures, measure_many
from visard.evaluation.recognisers import DlibRecogniser
from visard.evaluation.summary import Evaluation, summarise
from visard.pipeline import Options
from visard_errors import DataError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from visard.client import Client
    from visard.evaluation.labels import LabelledPhoto
    from visard.evaluation.recognisers import Recogniser

OPTIONS = Options(faces="largest")


def evaluate(
    photos: Sequence[LabelledPhoto],
    client: Client,
    *,
    results: Path | None = None,
    recognisers: Sequence[Recogniser] | None = None,
    groups: Sequence[str] = (),
    pictures: bool = False,
    progress: Callable[[Iterator[Any]], Iterable[Any]] = lambda measured: measured,
) -> Evaluation:
    """Anonymise photos, or take the results that a folder has of them, and measure; see `summarise`.

    Args:
        photos: what `find_photos` found.
        client: reaches the models; also for finished results, which its classifier judges and its generators attack.
        results: folder of finished results by the photos' names.
        recognisers: who judges identity; dlib alone by default.
        groups: columns of the manifest to split the figures by; see `choose_groups`.
        pictures: keep small pictures of every face for a report.
        progress: wraps what is measured, to count it as it comes.

    Raises:
        ServerError: no photo could be measured, because of the server.
        DataError: no photo could be measured.
        MissingExtra: scipy is not installed.
    """
    from visard.evaluation.pairs import compare_many

    recognisers = (DlibRecogniser(),) if recognisers is None else recognisers
    if results is None:
        outcomes = client.anonymize_many((photo.path for photo in photos), OPTIONS)
    else:
        outcomes = compare_many(photos, results, client.swap)
    measured: list[Measures] = []
    errors: list[Exception] = []
    for item in progress(measure_many(photos, outcomes, recognisers, client.swap, pictures=pictures)):
        (measured if isinstance(item, Measures) else errors).append(item)
    if not measured:
        raise _nothing(errors)
    return summarise(measured, errors, recognisers, groups)


def _nothing(errors: Sequence[Exception]) -> Exception:
    """The error to raise where every photo failed: the server's, as it can be mended, before the photos'."""
    server = [error for error in errors if isinstance(error, ServerError)]
    if server:
        return server[0]
    kinds = ", ".join(sorted({type(error).__name__ for error in errors}))
    return DataError(f"none of {len(errors)} photos could be measured ({kinds}): {errors[0]}")
