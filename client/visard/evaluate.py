"""How well a server's models anonymise a folder of labelled photos, in figures that can be compared.

Labels come from a `manifest.csv` (columns file, gender and optionally split) or from folders named `female` and `male`.
The label belongs to the largest face of a photo. It knows nothing about how photos are anonymised, and it judges by the
same classifier that steers the swap: a second opinion needs another server.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from visard.pipeline import Options
from visard.result import Gender
from visard_errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from visard.result import Outcome, Result

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_SAME_PLACE_IOU = 0.4  # the detector's boxes move in steps of a fifth, so the same face may be boxed this differently

OPTIONS = Options(faces="largest", identity=True)


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and the gender that its largest face is labelled with, None where there is no label."""

    path: Path
    gender: Gender | None


def find_photos(folder: Path, split: str | None = None) -> list[LabelledPhoto]:
    """List the photos of a folder with their labels.

    Args:
        folder: has a `manifest.csv`, or folders named `female` and `male`, or just photos.
        split: with a manifest, keep the rows of this split.

    Raises:
        DataError: there is nothing to evaluate, or the manifest lacks a column or names a file that is not there.
    """
    manifest = folder / "manifest.csv"
    photos = _from_manifest(manifest, split) if manifest.is_file() else _from_folders(folder)
    if not photos:
        what = f"no photo of split '{split}'" if split else "no photo"
        raise DataError(f"{what} in '{folder}': it needs JPEG, PNG or WebP files, or a manifest.csv that names some")
    return photos


def _from_manifest(manifest: Path, split: str | None) -> list[LabelledPhoto]:
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "gender"} <= rows[0].keys() or (split and "split" not in rows[0]):
        raise DataError(f"'{manifest}' needs the columns file, gender{' and split' if split else ''}")
    photos = [
        LabelledPhoto(manifest.parent / row["file"], _label(row["gender"]))
        for row in rows
        if split is None or row["split"] == split
    ]
    missing = [photo.path.name for photo in photos if not photo.path.is_file()]
    if missing:
        raise DataError(f"'{manifest}' names {len(missing)} files that are not there, such as {missing[0]}")
    return photos


def _from_folders(folder: Path) -> list[LabelledPhoto]:
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder")
    return [
        LabelledPhoto(path, _label(path.parent.name))
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]


def _label(word: str) -> Gender | None:
    word = word.strip().lower()
    return next((gender for gender in get_args(Gender) if gender == word), None)


def summarise(photos: Sequence[LabelledPhoto], outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Reduce the outcomes of `anonymize_many(..., OPTIONS)` over `photos` to figures.

    Returns:
        `n` faces; `classifier_accuracy`, `swap_success` and `similarity_percent`, each for photos labelled `female` and
        `male` (None without such photos; a photo without a label counts for the apparent gender of its face, and not
        for the accuracy); `detection_preserved`, the share of results in which the detector sees a face in the same
        place; `identity.dlib.verification`, the share that dlib's recogniser still takes for the same person; `errors`
        by name. Shares lie in 0..1. Every figure comes with no more certainty than `n` allows.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    preserved: list[bool] = []
    matched: list[bool] = []
    errors: Counter[str] = Counter()
    for photo, outcome in zip(photos, outcomes, strict=True):
        if outcome.result is None:
            errors[type(outcome.error).__name__] += 1
            continue
        (face,) = outcome.result.faces
        assert face.gender is not None  # noqa: S101 - OPTIONS gives no direction
        group = photo.gender or face.gender.label
        if photo.gender is not None:
            values["classifier_accuracy"][group].append(face.gender.label == photo.gender)
        values["swap_success"][group].append(face.flipped)
        values["similarity_percent"][group].append(face.similarity_percent)
        preserved.append(_still_detected(outcome.result))
        matched.append(bool(face.same_person))
    figures: dict[str, Any] = {"n": len(preserved)}
    for name in ("classifier_accuracy", "swap_success", "similarity_percent"):
        figures[name] = {gender: _mean(values[name][gender]) for gender in get_args(Gender)}
    figures["detection_preserved"] = _mean(preserved)
    figures["identity"] = {"dlib": {"verification": _mean(matched)}}
    figures["errors"] = dict(errors)
    return figures


def _still_detected(result: Result) -> bool:
    """Whether the detector sees a face where the largest one was."""
    from visard_preprocess.align import finder

    assert result.photo is not None  # noqa: S101 - OPTIONS asks for it
    box = result.faces[0].box
    return any(_iou(box, found.box) >= _SAME_PLACE_IOU for found in finder().find(result.photo))


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two (left, top, right, bottom) boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None


def evaluate(
    photos: Sequence[LabelledPhoto],
    anonymize_many: Callable[[Iterable[Any], Options], Iterator[Outcome]],
    progress: Callable[[Iterator[Outcome]], Iterator[Outcome]] = lambda outcomes: outcomes,
) -> dict[str, Any]:
    """Anonymise labelled photos and summarise; see `summarise`.

    Args:
        photos: what `find_photos` found.
        anonymize_many: of a `Client`.
        progress: wraps the outcomes, to count them as they come.
    """
    return summarise(photos, progress(anonymize_many((photo.path for photo in photos), OPTIONS)))
