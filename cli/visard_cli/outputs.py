"""Where the results of a run go: decided before any work, so that nothing is overwritten by surprise."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from visard_errors import OutputError
from visard_preprocess.files import folded, folds_case

if TYPE_CHECKING:
    from pathlib import Path

    from visard.result import Result

_WRITTEN = (".jpeg", ".jpg", ".png", ".webp")
# Suffixes of pictures that are not written: a folder is never called so, and a photo that is loses it for .jpg.
_OTHER_PICTURES = (
    *(".jpe", ".jfif", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw"),
)


def choose_targets(
    photos: list[Path], output: Path, *, crops: bool = False, side_by_side: bool = False, boxes: bool = False
) -> list[Path]:
    """Decide where each result goes: one file, or a folder in which every photo keeps its name.

    A photo whose name does not end like one that is written gets .jpg: `a.jfif` and `a` become `a.jpg`.

    Args:
        photos: what will be anonymised.
        output: a file with a photo's suffix, or a folder; see `make_folder`.
        crops: generated faces are written (`NAME_face1.png`), not photos.
        side_by_side: pictures of before and after are written too (`NAME_before_after.jpg`).
        boxes: pictures of the originals are written (`NAME_boxes.jpg`) and no results.

    Returns:
        A path per photo.

    Raises:
        ValueError: a result would overwrite a photo or another result, or the file is in a format that is not written.
    """
    suffix = output.suffix.lower()
    if suffix in _OTHER_PICTURES and not output.is_dir():
        raise ValueError(f"cannot write {output}: its name must end in {', '.join(_WRITTEN)}, or be that of a folder")
    if suffix in _WRITTEN and not output.is_dir():
        if len(photos) > 1:
            raise ValueError(f"{len(photos)} photos need a folder, not the file {output}")
        targets = [output]
    else:
        targets = [output / _written_name(photo, crops=crops) for photo in photos]
    if boxes:
        targets = [target.with_stem(f"{target.stem}_boxes") for target in targets]
    written = targets if crops or not side_by_side else [*targets, *map(_before_after, targets)]
    kept = [photo for photo in photos if crops and any(_is_crop_of(photo, path) for path in written)]
    if kept:
        raise ValueError(f"a result would overwrite the photo {kept[0]}: choose another output")
    check_apart(photos, written, "the photo")
    return targets


def check_apart(sources: list[Path], written: list[Path], kind: str) -> None:
    """Refuse results that would take each other's place, or that of any source.

    Args:
        sources: what is anonymised.
        written: all files that will be.
        kind: what a source is called, with its article.

    Raises:
        ValueError: one would.
    """
    for path in written:
        for source in sources:
            if _same_file(path, source):
                raise ValueError(f"a result would overwrite {kind} {source}: choose another output")
    twice = {path.name for path in written if written.count(path) > 1}
    if twice:
        raise ValueError(f"results of the same name would overwrite each other ({', '.join(sorted(twice))})")
    alike = Counter(folded(path.name) for path in written)
    if alike.total() > len(alike) and _folds_case(written[0].parent):
        names = sorted(path.name for path in written if alike[folded(path.name)] > 1)
        raise ValueError(f"names that differ by case only are one name there, and would overwrite ({', '.join(names)})")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and see whether files can be put into it.

    Raises:
        OutputError: it cannot be made, or not written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder} ({error.strerror}): choose another one") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into the folder {folder}: choose another one, or change its permissions")


def save_result(result: Result, source: Path, target: Path, *, side_by_side: bool) -> list[Path]:
    """Write a result, its crops where it has no photo, and a picture of before and after on request.

    Returns:
        What was written.

    Raises:
        OutputError: a path cannot be written.
        PhotoError: the source cannot be read again, or a picture is too large for its format.
    """
    if result.photo is None:
        saved = [target.with_stem(f"{target.stem}_face{i}") for i in range(1, len(result.faces) + 1)]
        for face, path in zip(result.faces, saved, strict=True):
            face.save(path)
        return saved
    result.save(target)
    if not side_by_side:
        return [target]
    from visard_preprocess.photo import read_photo, write_photo

    gap = np.full((result.photo.shape[0], 8, 3), 255, np.uint8)
    picture = np.hstack([read_photo(source), gap, result.photo])
    write_photo(picture, _before_after(target), source_type="compositeWithTrainedAlgorithmicMedia")
    return [target, _before_after(target)]


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may be any bytes
    except OSError as error:
        raise OutputError(f"cannot write '{path}' ({error.strerror}): choose a folder that can be written") from None


def _written_name(photo: Path, *, crops: bool) -> str:
    known = photo.suffix.lower() in (*_WRITTEN, *_OTHER_PICTURES)
    stem = photo.stem if known else photo.name
    if crops:
        return f"{stem}.png"
    return photo.name if photo.suffix.lower() in _WRITTEN else f"{stem}.jpg"


def _before_after(target: Path) -> Path:
    return target.with_stem(f"{target.stem}_before_after")


def _folds_case(folder: Path) -> bool:
    """Whether a folder, which may be new, tells no upper from lower case; it has that from the one it is made in."""
    try:
        while not folder.is_dir():
            folder = folder.parent
        return folds_case(folder)
    except OSError:  # nothing can be written there: `make_folder` says so
        return False


def _is_crop_of(photo: Path, target: Path) -> bool:
    crop = re.fullmatch(re.escape(target.stem) + r"_face\d+", photo.stem) and photo.suffix == target.suffix
    return bool(crop) and _same_file(photo.parent, target.parent)


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:  # one of them is not there, or cannot be reached: then nothing of it is overwritten
        return False
