"""Distinguishes the people of a list from all others, by dlib's face descriptors.

Descriptors are biometric data: they live in memory only, for the length of a run, and are neither printed nor stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from visard_errors import DataError, PhotoError
from visard_preprocess import DETECTOR_THRESHOLD

if TYPE_CHECKING:
    from pathlib import Path

# dlib's own threshold of 0.6 is where mistakes of both kinds are as rare. Here they are not as bad: taking a stranger
# for a person to keep leaves him visible, and so does missing one of the people to hide.
KEEP_BELOW = 0.5
HIDE_BELOW = 0.65


@dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """A list of people, and whether they alone stay visible or they alone are hidden.

    Attributes:
        mode: `keep` leaves their faces visible and hides all others; `only` hides theirs and leaves all others visible.
        descriptors: (N, 128) float64, one per photo of a person.
    """

    mode: Literal["keep", "only"]
    descriptors: NDArray[np.float64] = field(repr=False)

    def stays_visible(self, descriptor: NDArray[np.float64]) -> bool:
        """Whether the face with this descriptor, (128,) float64, is left as it is."""
        nearest = float(np.linalg.norm(self.descriptors - descriptor, axis=1).min())
        return nearest < KEEP_BELOW if self.mode == "keep" else nearest >= HIDE_BELOW


def load_people(folder: Path, mode: Literal["keep", "only"], threshold: float = DETECTOR_THRESHOLD) -> People:
    """Describe the people in a folder of photos, several of each if there are: the more views, the surer the match.

    Args:
        folder: photos with exactly one face each, in any sub-folders.
        mode: see `People`.
        threshold: see `visard_preprocess.align.FaceFinder.find`.

    Raises:
        DataError: there is no photo, or one cannot be used. A list with a gap would hide or show the wrong people.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.geometry import crop
    from visard_preprocess.photo import read_photo

    descriptors = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        try:
            photo = read_photo(path)
        except PhotoError as error:
            raise DataError(f"the people's photos cannot be used: {error}") from None
        faces = finder().find(photo, threshold)
        if len(faces) != 1 or faces[0].too_small:
            what = "a face that is too small" if len(faces) == 1 else f"{len(faces)} faces"
            raise DataError(f"'{path}' shows {what}: a photo of the people's list shows one person, large enough")
        descriptors.append(finder().descriptor(crop(photo, faces[0].quad)))
    if not descriptors:
        raise DataError(f"no photo of people in '{folder}': it needs at least one with one face")
    return People(mode=mode, descriptors=np.array(descriptors))
