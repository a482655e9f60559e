"""Where the results of a run go: decided before any work, so that nothing is overwritten by surprise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from visard_errors import UnreadablePhoto

if TYPE_CHECKING:
    from pathlib import Path

    from visard.result import Result


def choose_targets(photos: list[Path], output: Path, *, crops: bool) -> list[Path]:
    """Decide where each result goes: one file, or a folder in which every photo keeps its name.

    Args:
        photos: what will be anonymised.
        output: a file with a photo's suffix, or a folder, which is made.
        crops: generated faces are written (`NAME_face1.png`), not photos.

    Returns:
        A path per photo.

    Raises:
        ValueError: a result would overwrite its photo or another result.
        UnreadablePhoto: the folder cannot be made.
    """
    one_file = output.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and not output.is_dir()
    if one_file and len(photos) > 1:
        raise ValueError(f"{len(photos)} photos need a folder, not the file {output}")
    if one_file:
        targets = [output]
    else:
        suffix = ".png" if crops else None
        targets = [output / (photo.with_suffix(suffix).name if suffix else photo.name) for photo in photos]
    for photo, target in zip(photos, targets, strict=True):
        if target.exists() and photo.exists() and target.samefile(photo):
            raise ValueError(f"the result would overwrite the photo {photo}")
    if len(set(targets)) < len(targets):
        raise ValueError("two photos of the same name would overwrite each other")
    make_folder(targets[0].parent)
    return targets


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UnreadablePhoto: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreadablePhoto(f"cannot make the folder {folder}: {error.strerror}") from None


def save_result(result: Result, source: Path, target: Path, *, side_by_side: bool) -> list[Path]:
    """Write a result, its crops where it has no photo, and a picture of before and after on request.

    Returns:
        What was written.

    Raises:
        PhotoError: a path cannot be written.
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

    both = target.with_stem(f"{target.stem}_before_after")
    gap = np.full((result.photo.shape[0], 8, 3), 255, np.uint8)
    picture = np.hstack([read_photo(source), gap, result.photo])
    write_photo(picture, both, source_type="compositeWithTrainedAlgorithmicMedia")
    return [target, both]
