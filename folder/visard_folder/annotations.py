"""Carries a data set's annotations to the anonymised set: COCO files and CSV tables, with the gender that was changed.

What belongs to a photo that was not written is left out. Boxes, key points and outlines stay as they are, because a
swap keeps a face's place and pose. Of a COCO file only known fields are carried, because others lead back to the
original (`coco_url`, `date_captured`, captions); of a table every column is, so a table with names is not one to carry.

The gender that a face now shows is the one that the generator was asked for; a face made of blocks shows none, and a
face that was left as it is keeps its label.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from visard_errors import DataError
from visard_folder.journal import FaceRecord
from visard_folder.tables import open_table, slashed
from visard_preprocess.files import replace_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from visard.result import Gender
    from visard_folder.journal import Journal, Record

_GENDER_NAMES = ("gender", "sex", "male", "female")
_FILE_NAMES = ("file", "file_name", "filename", "path", "image", "image_id")
_WORDS: tuple[dict[Gender, str], ...] = (
    {"female": "female", "male": "male"},
    {"female": "woman", "male": "man"},
    {"female": "women", "male": "men"},
    {"female": "girl", "male": "boy"},
    {"female": "f", "male": "m"},
)

_COCO_PARTS = ("info", "licenses", "categories")
_COCO_IMAGE = ("id", "file_name", "width", "height", "license")
_COCO_ANNOTATION = (
    *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints"),
    "attributes",
)
_ANY_FACE = (FaceRecord(box=(0, 0, 1, 1), outcome="swapped"),)  # to try whether a box can be understood


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Files to carry along.

    Attributes:
        coco: COCO JSON files; `file_name` is the path relative to the source folder. Read into memory as a whole.
        tables: CSV files with a header and a row per photo, the path relative to the source folder in a column called
            file, path or image_id (or the first one); CelebA's attributes and landmarks are such tables.
        gender: name of the column, or of the entry in COCO's `attributes`, that says the gender. Where it is None,
            one that is called gender, sex, male or female is taken. A COCO category that says a gender is changed too.
    """

    coco: tuple[Path, ...] = ()
    tables: tuple[Path, ...] = ()
    gender: str | None = None

    def check(self) -> None:
        """Read everything once, so that a file that cannot be used is found before the work and not after it.

        Raises:
            DataError: a file cannot be read, or its gender cannot be understood.
        """
        for path in self.coco:
            _Coco(path, self.gender)
        for path in self.tables:
            _Table(path, self.gender)
        names = [path.name for path in (*self.coco, *self.tables)]
        if len(set(names)) < len(names):
            raise DataError("two annotation files have the same name, and would have it in the output: rename one")

    def carry(self, journal: Journal, notice: Callable[[str], None]) -> list[Path]:
        """Write each file, under its own name, into the output folder.

        Args:
            journal: of a finished run.
            notice: gets a message about what was left out.

        Returns:
            What was written.

        Raises:
            DataError: a file cannot be used, or has the name of a photo.
        """
        written = []
        parts: list[_Coco | _Table] = [
            *(_Coco(path, self.gender) for path in self.coco),
            *(_Table(path, self.gender) for path in self.tables),
        ]
        for part in parts:
            final = journal.target / part.path.name
            if (record := journal.get(part.path.name)) and record.written:
                raise DataError(f"'{part.path}' has the name of a photo, {final}: rename it")
            kept, left_out = replace_atomically(final, partial(part.carry, journal), drafts=journal.drafts)
            written.append(final)
            if left_out:
                notice(f"{part.path.name}: {kept} photos carried, {left_out} left out (not written, or not found)")
        return written


class _Coco:
    """One COCO file."""

    def __init__(self, path: Path, gender: str | None) -> None:
        self.path = path
        try:
            self._data = json.loads(path.read_bytes())
            self._images = [(image["id"], str(image["file_name"]), image) for image in self._data["images"]]
            annotations = self._data["annotations"]
            attributes = {
                name: {str(annotation["attributes"].get(name)) for annotation in annotations if _attributes(annotation)}
                for name in {key for annotation in annotations for key in _attributes(annotation)}
            }
            categories = {category["id"]: str(category["name"]) for category in self._data.get("categories", [])}
            for annotation in annotations:
                _face_in(annotation.get("bbox"), _ANY_FACE)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"'{path}' is not a COCO file with images and annotations ({error!r})") from None
        self._gender = _choose(path, gender, attributes)
        self._words = _vocabulary(path, self._gender, attributes.get(self._gender or "", set()))
        self._categories = _category_change(categories)

    def carry(self, journal: Journal, draft: Path) -> tuple[int, int]:
        records = {}
        images = []
        for identifier, file_name, image in self._images:
            record = journal.get(slashed(file_name))
            if record is not None and record.written and _same_size(image, record):
                records[identifier] = record
                images.append({key: image[key] for key in _COCO_IMAGE if key in image})
        annotations = [
            self._changed(annotation, records[annotation["image_id"]])
            for annotation in self._data["annotations"]
            if annotation.get("image_id") in records
        ]
        parts = {name: self._data[name] for name in _COCO_PARTS if name in self._data}
        with draft.open("w", encoding="utf-8") as file:
            json.dump({**parts, "images": images, "annotations": annotations}, file)
        return len(images), len(self._images) - len(images)

    def _changed(self, annotation: dict[str, Any], record: Record) -> dict[str, Any]:
        changed = {key: annotation[key] for key in _COCO_ANNOTATION if key in annotation}
        face = _face_in(annotation.get("bbox"), record.faces)
        if face is None or not _changed(face):
            return changed
        gender = _shown(face)
        if self._gender in _attributes(annotation):
            value = None if gender is None else self._words.get(gender)
            changed["attributes"] = annotation["attributes"] | {self._gender: value}
        if gender is not None:
            changed["category_id"] = self._categories.get(
                (annotation.get("category_id"), gender), changed["category_id"]
            )
        return changed


class _Table:
    """One CSV file."""

    def __init__(self, path: Path, gender: str | None) -> None:
        self.path = path
        values: dict[str, set[str]] = {}
        self._columns: list[str] = []
        for row in self._rows():
            for name in _GENDER_NAMES if gender is None else (gender,):
                for column in row:
                    if column.lower() == name.lower():
                        values.setdefault(column, set()).add(row[column])
        self._file = next((column for column in self._columns if column.lower() in _FILE_NAMES), self._columns[0])
        self._gender = _choose(path, gender, values)
        self._words = _vocabulary(path, self._gender, values.get(self._gender or "", set()))

    def carry(self, journal: Journal, draft: Path) -> tuple[int, int]:
        kept = left_out = 0
        with draft.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, self._columns, lineterminator="\n")
            rows.writeheader()
            for row in self._rows():
                record = journal.get(slashed(row[self._file]))
                if record is None or not record.written:
                    left_out += 1
                    continue
                kept += 1
                if self._gender is not None and record.faces and _changed(record.faces[0]):
                    gender = _shown(record.faces[0])  # the largest: a table knows one face per photo
                    row[self._gender] = "" if gender is None else self._words[gender]
                rows.writerow(row)
        return kept, left_out

    def _rows(self) -> Iterator[dict[str, str]]:
        with open_table(self.path) as (self._columns, rows):
            for _, row in rows:
                yield row


def _attributes(annotation: dict[str, Any]) -> dict[str, Any]:
    return annotation.get("attributes") or {}


def _shown(face: FaceRecord) -> Gender | None:
    """The gender that a changed face shows now; None for a covered one."""
    return face.target if face.outcome == "swapped" else None


def _changed(face: FaceRecord) -> bool:
    return face.outcome in ("swapped", "covered")


def _same_size(image: dict[str, Any], record: Record) -> bool:
    """Whether the boxes fit: a photo that its EXIF orientation turned has other coordinates than its annotations."""
    stated = image.get("width"), image.get("height")
    return None in stated or stated == (record.width, record.height)


def _face_in(bbox: Any, faces: Iterable[FaceRecord]) -> FaceRecord | None:
    """The face that a box (left, top, width, height), of a face or a whole person, speaks of: the best overlap."""
    if bbox is None:
        return None
    left, top, width, height = bbox
    best, best_iou = None, 0.0
    for face in faces:
        a, b, c, d = face.box
        if not (left <= (a + c) / 2 <= left + width and top <= (b + d) / 2 <= top + height):
            continue
        shared = (min(c, left + width) - max(a, left)) * (min(d, top + height) - max(b, top))
        iou = shared / ((c - a) * (d - b) + width * height - shared)
        if iou > best_iou:
            best, best_iou = face, iou
    return best


def _choose(path: Path, asked: str | None, values: Iterable[str]) -> str | None:
    """Which name says the gender."""
    by_lower = {name.lower(): name for name in values}
    if asked is None:
        return next((by_lower[name] for name in _GENDER_NAMES if name in by_lower), None)
    if asked.lower() not in by_lower:
        raise DataError(f"'{path}' has nothing called '{asked}' that could say the gender")
    return by_lower[asked.lower()]


def _vocabulary(path: Path, name: str | None, values: set[str]) -> dict[Gender, str]:
    """How the two genders are written, from the values that occur.

    Raises:
        DataError: they cannot be determined.
    """
    if name is None:
        return {}
    for words in _WORDS:
        for value in sorted(values):
            if value.lower() in words.values():
                return {gender: _in_case_of(value, word) for gender, word in words.items()}
    low = next((low for low in ("-1", "0") if values <= {"1", low}), None)
    yes, no = ("1", low) if low else ("True", "False") if values <= {"True", "False"} else (None, None)
    if yes and no and name.lower() in ("male", "female"):
        return {"female": no, "male": yes} if name.lower() == "male" else {"female": yes, "male": no}
    raise DataError(
        f"cannot tell which gender the values of '{name}' in '{path}' mean ({', '.join(sorted(values)[:5])}): use "
        "female and male, or a column called Male with 1 and -1"
    )


def _in_case_of(example: str, word: str) -> str:
    return word.upper() if example.isupper() else word.title() if example.istitle() else word


def _category_change(categories: dict[Any, str]) -> dict[tuple[Any, Gender | None], Any]:
    """(category, new gender) → category, for those that say a gender."""
    change: dict[tuple[Any, Gender | None], Any] = {}
    by_name = {name.lower(): identifier for identifier, name in categories.items()}
    for words in _WORDS:
        present = {gender: by_name[word] for gender, word in words.items() if word in by_name}
        for identifier in present.values():
            change |= {(identifier, gender): other for gender, other in present.items()}
    return change
