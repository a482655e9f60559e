"""Photographs of people in, a cache of aligned faces out: what every training starts from.

`prepare_faces` aligns each photo once with Visard's own aligner and remembers where it was; `read_faces` reads what it
left.

A cache is a folder that holds pictures of real people: it lies where the user said, and nowhere else.

    faces.csv        one row per face: file, gender, split, person, side_px, inside, then the groups
    landmarks.npy    (faces, 68, 2) float32, x before y, in pixels of the aligned picture, in faces.csv's order
    images/*.jpg     512×512, aligned
    journal.jsonl    what was done so far, photos without a usable face included; the other two are made from it
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from visard_errors import DataError, PhotoError
from visard_preprocess.align import finder
from visard_preprocess.files import write_atomically
from visard_preprocess.geometry import CROP_SIZE, Quad, crop
from visard_preprocess.machine import cores
from visard_preprocess.photo import read_photo
from visard_training.data.options import PrepareOptions
from visard_training.runs.progress import Progress

Gender = Literal["female", "male"]
Split = Literal["train", "validation", "test"]

GENDERS: tuple[Gender, ...] = get_args(Gender)  # in the order of the classifier's outputs
FACES_FILE, LANDMARKS_FILE, IMAGES_FOLDER, JOURNAL_FILE = "faces.csv", "landmarks.npy", "images", "journal.jsonl"

_GENDER_WORDS: dict[str, Gender] = {"woman": "female", "women": "female", "man": "male", "men": "male"}
_GENDER_WORDS |= {gender: gender for gender in GENDERS}
_SPLIT_WORDS: dict[str, Split] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLIT_WORDS |= {"validation": "validation", "valid": "validation", "val": "validation"}
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_COLUMNS = ("file", "gender", "split", "person", "side_px", "inside")
# UTKFace writes age, gender and ethnicity into its file names: https://susanqq.github.io/UTKFace/
_UTKFACE_NAME = re.compile(r"(?P<age>\d{1,3})_[01]_(?P<ethnicity>[0-4])_\d{17}")
_UTKFACE_ETHNICITIES = ("white", "black", "asian", "indian", "other")

_GRID = 32  # `inside` is counted on this many points a side


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One labelled photograph, before alignment.

    Attributes:
        path: where it lies.
        gender: apparent or self-reported, as the source says.
        split: None where the source does not say.
        person: photos of one person share it, and are never divided between splits.
        groups: further columns of the source, such as ethnicity and age.
    """

    path: Path
    gender: Gender
    split: Split | None
    person: str
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One aligned face of a cache.

    Attributes:
        path: a 512×512 JPEG.
        gender: apparent or self-reported, as the source says.
        split: which part of the training may see it.
        person: whose face it is.
        side_px: edge of the aligned square in pixels of the photo it came from.
        inside: share of the square that lay within the photo, 0..1; the rest is a blurred reflection.
        groups: further columns of the source, such as ethnicity and age.
        landmarks: (68, 2) float32, x before y, in pixel-index coordinates of the aligned picture.
    """

    path: Path
    gender: Gender
    split: Split
    person: str
    side_px: float
    inside: float
    groups: Mapping[str, str]
    landmarks: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What came of preparing a source.

    Attributes:
        cache: the folder that was filled.
        n_faces: aligned faces in it.
        skipped: reason → number of photos without a usable face.
    """

    cache: Path
    n_faces: int
    skipped: Mapping[str, int]


def read_source(source: Path) -> tuple[Photo, ...]:
    """List the labelled photos of a data set.

    Args:
        source: a folder with one folder per class, or with `Training` and `Validation` that have those; or a CSV
            manifest (or a folder with a `manifest.csv`) with the columns file and gender, optionally split and person;
            every further column is a group. Files are relative to the manifest.

    Raises:
        DataError: there is nothing to train on, or only one class.
    """
    manifest = source / "manifest.csv" if source.is_dir() else source
    if manifest.is_file():
        photos = list(_manifest_photos(manifest))
    elif source.is_dir():
        photos = [photo for folder, split in _split_folders(source) for photo in _folder_photos(folder, source, split)]
    else:
        raise DataError(f"'{source}' is neither a folder nor a CSV manifest: check the path")
    check_classes((photo.gender for photo in photos), f"'{source}'")
    return tuple(photos)


def check_classes(genders: Iterable[Gender], where: str) -> None:
    """Refuse what nobody can learn from.

    Raises:
        DataError: one of the classes is empty, or both are.
    """
    counts = Counter(genders)
    if missing := [gender for gender in GENDERS if not counts[gender]]:
        found = ", ".join(f"{counts[gender]} {gender}" for gender in GENDERS)
        raise DataError(
            f"{where} holds {found}: no '{missing[0]}' to learn from. Give one folder per class ('female', 'male') "
            "with JPEG, PNG or WebP photos, or a CSV manifest with the columns file and gender"
        )


def prepare_faces(source: Path, cache: Path, options: PrepareOptions, *, console: Console | None = None) -> Preparation:
    """Align every photo of a data set into a cache; a second call resumes where the first one ended.

    The largest face that dlib's HOG sees in a photo is taken: upright, whole, and looking roughly at the camera.
    Photos without one, and broken ones, are skipped and counted. Where the alignment square leaves the photo it
    continues as a blurred reflection, as it does when the model is served;
    `inside` says how much of it was real.

    Args:
        source: see `read_source`.
        cache: folder to fill; it will hold pictures of people.
        options: who is held out, and how many processes work.
        console: where the progress bar is drawn.

    Raises:
        DataError: the source cannot be used, or too few faces were found.
    """
    photos = hold_out(read_source(source), options.validation_share, options.seed)
    images = cache / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    names = [_image_name(photo.path, source) for photo in photos]
    done = _read_journal(cache / JOURNAL_FILE)
    todo = [(photo, name) for photo, name in zip(photos, names, strict=True) if name not in done]
    workers = min(options.workers or cores(), len(todo)) or 1
    with (
        Progress("Aligning", len(photos), done=len(photos) - len(todo), console=console) as progress,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
        (cache / JOURNAL_FILE).open("a", encoding="utf-8") as journal,
    ):
        running = [pool.submit(_align_photo, photo.path, images / name) for photo, name in todo]
        try:
            for future in as_completed(running):
                entry = future.result()
                done[entry["name"]] = entry
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
                progress.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    entries = [(photo, done[name]) for photo, name in zip(photos, names, strict=True)]
    found = [(photo, entry) for photo, entry in entries if "landmarks" in entry]
    write_cache(cache, found)
    skipped = Counter(entry["problem"] for _, entry in entries if "problem" in entry)
    check_classes((photo.gender for photo, _ in found), f"'{source}', after alignment ({dict(skipped)} skipped),")
    return Preparation(cache=cache, n_faces=len(found), skipped=skipped)


def read_faces(cache: Path) -> tuple[Sample, ...]:
    """Read what `prepare_faces` left, in the order of `faces.csv`.

    Raises:
        DataError: the cache is missing or damaged.
    """
    try:
        landmarks = np.load(cache / LANDMARKS_FILE, allow_pickle=False)
        with (cache / FACES_FILE).open(encoding="utf-8", newline="") as file:
            samples = tuple(
                Sample(
                    path=cache / row["file"],
                    gender=_GENDER_WORDS[row["gender"]],
                    split=_SPLIT_WORDS[row["split"]],
                    person=row["person"],
                    side_px=float(row["side_px"]),
                    inside=float(row["inside"]),
                    groups={name: value for name, value in row.items() if name not in _COLUMNS},
                    landmarks=points,
                )
                for row, points in zip(csv.DictReader(file), landmarks, strict=True)
            )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"'{cache}' is not a folder of prepared faces ({error}): make one with `visard train prepare DATA {cache}`"
        ) from error
    check_classes((sample.gender for sample in samples), f"'{cache}'")
    return samples


def _manifest_photos(manifest: Path) -> Iterable[Photo]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := {"file", "gender"} - set(rows.fieldnames or ()):
                raise DataError(f"'{manifest}' has no column {' or '.join(sorted(missing))}: add it to its first line")
            for number, row in enumerate(rows, 2):
                gender = _GENDER_WORDS.get((row["gender"] or "").strip().lower())
                split = (row.get("split") or "").strip().lower()
                if gender is None or (split and split not in _SPLIT_WORDS):
                    raise DataError(
                        f"'{manifest}', line {number}: gender '{row['gender']}', split '{split}': genders are "
                        "female and male, splits train, validation and test"
                    )
                groups = {k: v for k, v in row.items() if k and v and k not in ("file", "gender", "split", "person")}
                yield Photo(
                    path=manifest.parent / row["file"],
                    gender=gender,
                    split=_SPLIT_WORDS.get(split),
                    person=row.get("person") or row["file"],
                    groups=groups,
                )
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read the manifest '{manifest}' ({error}): give a CSV file in UTF-8") from error


def _split_folders(source: Path) -> list[tuple[Path, Split | None]]:
    named = [
        (folder, _SPLIT_WORDS[folder.name.lower()])
        for folder in _folders(source)
        if folder.name.lower() in _SPLIT_WORDS
    ]
    return [*named] or [(source, None)]


def _folder_photos(folder: Path, source: Path, split: Split | None) -> Iterable[Photo]:
    for of_class in _folders(folder):
        if gender := _GENDER_WORDS.get(of_class.name.lower()):
            for path in sorted(of_class.rglob("*")):
                if path.suffix.lower() in _PHOTO_SUFFIXES:
                    person = path.relative_to(source).as_posix()
                    yield Photo(path=path, gender=gender, split=split, person=person, groups=_utkface_groups(path))


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _utkface_groups(path: Path) -> dict[str, str]:
    match = _UTKFACE_NAME.match(path.name)
    if match is None:
        return {}
    return {"age": match["age"], "ethnicity": _UTKFACE_ETHNICITIES[int(match["ethnicity"])]}


def hold_out(photos: Sequence[Photo], share: float, seed: int) -> list[Photo]:
    """Give every photo a split.

    People are held out in the order of a hash: the order of the photos decides nothing, and one more photo moves at
    most one person.
    """
    held_out: set[str] = set()
    if not any(photo.split == "validation" for photo in photos):
        for gender in GENDERS:
            people = {photo.person for photo in photos if photo.gender == gender and photo.split != "test"}
            order = sorted(people, key=lambda person: hashlib.sha256(f"{seed} {person}".encode()).digest())
            held_out.update(order[: round(share * len(order))])
    return [
        replace(
            photo, split="validation" if photo.person in held_out and photo.split != "test" else photo.split or "train"
        )
        for photo in photos
    ]


def _image_name(path: Path, source: Path) -> str:
    """A readable name that no two files of a source share, and that does not depend on where the source lies."""
    base = source if source.is_dir() else source.parent
    relative = os.path.relpath(path, base)
    return f"{path.name.partition('.')[0][:60]}-{hashlib.sha256(relative.encode()).hexdigest()[:8]}.jpg"


def _align_photo(path: Path, target: Path) -> dict[str, Any]:
    """Align one photo; runs in a process of its own, and returns the journal's entry."""
    try:
        photo = read_photo(path)
    except PhotoError as error:
        return {"name": target.name, "problem": type(error).__name__}
    faces = finder().find_frontal(photo)
    if not faces:
        return {"name": target.name, "problem": "NoFace"}
    if faces[0].too_small:
        return {"name": target.name, "problem": "FaceTooSmall"}
    quad, landmarks = faces[0].quad, faces[0].landmarks
    assert landmarks is not None  # noqa: S101 - HOG's faces have some
    buffer = BytesIO()
    Image.fromarray(crop(photo, quad)).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    write_atomically(target, buffer.getvalue())
    return {
        "name": target.name,
        "side_px": round(quad.side, 1),
        "inside": round(_share_inside(quad, photo.shape[1], photo.shape[0]), 3),
        "landmarks": np.round(quad.to_crop(landmarks), 2).tolist(),
    }


def _share_inside(quad: Quad, width: int, height: int) -> float:
    centres = (np.arange(_GRID) + 0.5) * (CROP_SIZE / _GRID) - 0.5
    points = quad.to_photo(np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2))
    return float(((points >= -0.5) & (points < np.array([width, height]) - 0.5)).all(axis=1).mean())


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Read what was done; a line that a kill cut short was not done. Whatever follows starts on a line of its own."""
    entries: dict[str, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomically(path, whole.encode())
    for line in whole.splitlines():
        entry = json.loads(line)
        entries[entry["name"]] = entry
    return entries


def write_cache(cache: Path, found: Sequence[tuple[Photo, Mapping[str, Any]]]) -> None:
    """Write the tables of a folder of prepared faces; the entries name their images, sizes and landmarks."""
    groups = sorted({name for photo, _ in found for name in photo.groups})
    points = np.array([entry["landmarks"] for _, entry in found], np.float32).reshape(-1, 68, 2)
    buffer = BytesIO()
    np.save(buffer, points)
    write_atomically(cache / LANDMARKS_FILE, buffer.getvalue())
    table = StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow([*_COLUMNS, *groups])
    for photo, entry in found:
        row = [f"{IMAGES_FOLDER}/{entry['name']}", photo.gender, photo.split, photo.person]
        rows.writerow([*row, entry["side_px"], entry["inside"], *(photo.groups.get(name, "") for name in groups)])
    write_atomically(cache / FACES_FILE, table.getvalue().encode())
