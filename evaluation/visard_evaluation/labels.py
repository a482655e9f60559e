"""Which photos are evaluated, and what is known about each: the label of its largest face, its person, its groups.

Labels come from a `manifest.csv` (columns file, gender and optionally split and person, any further ones for groups) or
from folders named `female` and `male`; photos without labels are welcome too.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from visard.result import Gender
from visard_errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_KNOWN_COLUMNS = {"file", "gender", "split", "person"}
_MOST_GROUPS = 12  # a column with more values, or with hardly a photo for each, is a description, not a group
_FEWEST_PHOTOS = 5  # for each value, on average


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and what is known about its largest face.

    Attributes:
        path: of the file.
        gender: its label, None where there is none.
        name: the path within the folder, with forward slashes; reports show this.
        person: who it is, in any words; None where that is not known, which counts as somebody else than all others.
        columns: further columns of the manifest.
    """

    path: Path
    gender: Gender | None = None
    name: str = ""
    person: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


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
        raise DataError(
            f"{what} in '{folder}': it needs JPEG, PNG, WebP, AVIF or HEIC files, or a manifest.csv that names some"
        )
    return photos


def choose_groups(photos: Sequence[LabelledPhoto], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Choose the columns by which figures are split.

    Args:
        photos: what `find_photos` found.
        wanted: names of columns; without any, every further column of 2 to 12 different values that have five photos
            each on average.

    Raises:
        DataError: a wanted column is not in the manifest.
    """
    values: dict[str, set[str]] = {}
    for photo in photos:
        for column, value in photo.columns.items():
            values.setdefault(column, set()).add(value)
    missing = [column for column in wanted if column not in values]
    if missing:
        there = ", ".join(values) or "none but file, gender, split and person"
        raise DataError(f"the manifest has no column '{missing[0]}' to group by: it has {there}")
    most = min(_MOST_GROUPS, len(photos) // _FEWEST_PHOTOS)
    return tuple(wanted) or tuple(column for column, seen in values.items() if 2 <= len(seen) <= most)


def _from_manifest(manifest: Path, split: str | None) -> list[LabelledPhoto]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read '{manifest}' ({error}): it must be CSV in UTF-8") from None
    if not rows or not {"file", "gender"} <= rows[0].keys() or (split and "split" not in rows[0]):
        raise DataError(f"'{manifest}' needs the columns file, gender{' and split' if split else ''}")
    photos = [
        LabelledPhoto(
            manifest.parent / row["file"],
            _label(row["gender"]),
            row["file"],
            row.get("person") or None,
            {column: row[column] for column in row if column and column not in _KNOWN_COLUMNS},
        )
        for row in rows
        if split is None or row["split"] == split
    ]
    missing = [photo.name for photo in photos if not photo.path.is_file()]
    if missing:
        raise DataError(f"'{manifest}' names {len(missing)} files that are not there, such as {missing[0]}")
    return photos


def _from_folders(folder: Path) -> list[LabelledPhoto]:
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder")
    return [
        LabelledPhoto(path, _label(path.parent.name), path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]


def _label(word: str) -> Gender | None:
    word = word.strip().lower()
    return next((gender for gender in get_args(Gender) if gender == word), None)
