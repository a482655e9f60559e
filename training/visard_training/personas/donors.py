"""Reads donors, the generated portraits that personas are averaged from, and groups them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import DataError
from visard_training.data.faces import GENDERS, Gender, Sample, read_faces
from visard_training.personas.options import FEWEST_DONORS
from visard_training.personas.shapes import (
    OPEN_MOUTH,
    Shape,
    cheeks_and_nose,
    mirrored,
    mouth_gap,
    turned,
    with_forehead,
)

TONE_LIMITS = (60.0, 48.0)  # CIE L* of cheeks and nose in good light below which skin is of middle and of dark tone
OLD_AGE = 50  # years from which a face counts as old
MAX_TURNED = 0.1  # donors that are turned further show one side only


@dataclass(frozen=True, kw_only=True, eq=False)
class Donor:
    """One generated portrait.

    Attributes:
        picture: (512, 512, 3) uint8 RGB, aligned.
        shape: (75, 2).
        gender: as its manifest says.
        old: whether it looks `OLD_AGE` or older.
        open: whether its mouth is.
        lightness: see `skin_lightness`.
    """

    picture: NDArray[np.uint8]
    shape: Shape
    gender: Gender
    old: bool
    open: bool
    lightness: float


def read_donors(caches: Sequence[Path]) -> list[Donor]:
    """Read those of prepared faces that look at the camera; split `test` is left out.

    Raises:
        DataError: a cache cannot be used, does not say how old its faces look, or there are too few donors.
    """
    donors = []
    for cache in caches:
        for face in read_faces(cache):
            if face.split == "test" or turned(with_forehead(face.landmarks)) > MAX_TURNED:
                continue
            age = age_of(face)
            if age is None:
                raise DataError(f"'{cache}' does not say how old '{face.path.name}' looks: add a column age")
            donors.append(_donor(face, age))
    for gender in GENDERS:
        lightness = [d.lightness for d in donors if d.gender == gender]
        if len(lightness) < 4 * FEWEST_DONORS:
            raise DataError(f"{len(lightness)} usable donors are '{gender}', at least {4 * FEWEST_DONORS} are needed")
    return donors


def age_of(face: Sample) -> float | None:
    """How old a face is or looks, in years, where its manifest says it in `age` or `age_guess`."""
    for column in ("age", "age_guess"):
        with suppress(KeyError, ValueError):
            return float(face.groups[column])
    return None


def _donor(face: Sample, age: float) -> Donor:
    picture = np.asarray(Image.open(face.path).convert("RGB"))
    shape = with_forehead(face.landmarks)
    return Donor(
        picture=picture,
        shape=shape,
        gender=face.gender,
        old=age >= OLD_AGE,
        open=mouth_gap(shape) > OPEN_MOUTH,
        lightness=skin_lightness(picture, shape),
    )


def skin_lightness(picture: NDArray[np.uint8], shape: Shape) -> float:
    """Median CIE L* (0..100) of cheeks and nose: the skin's tone under the photo's own light.

    Args:
        picture: (512, 512, 3) uint8 RGB.
        shape: of its face.
    """
    cheeks = cheeks_and_nose(shape)
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    return float(np.median(lab[..., 0][cheeks])) * 100 / 255 if cheeks.any() else 50.0


def tone_of(lightness: float) -> int:
    """Group of skin tone, 0 for light to 2 for dark, of skin that is evenly and brightly lit."""
    return int(lightness < TONE_LIMITS[0]) + int(lightness < TONE_LIMITS[1])


def nearest(donors: Sequence[Donor], tone: int, old: bool, n: int) -> list[Donor]:
    """The donors of an age group and a tone, filled up to `n` with those of its age whose tone is nearest."""
    of_age = [d for d in donors if d.old == old]
    middle = float(np.median([d.lightness for d in donors if tone_of(d.lightness) == tone] or [50.0]))
    order = sorted(of_age, key=lambda d: (tone_of(d.lightness) != tone, abs(d.lightness - middle)))
    inside = sum(tone_of(d.lightness) == tone for d in of_age)
    return order[: max(n, inside)]


def mean_shape(donors: Sequence[Donor], is_open: bool) -> Shape:
    """Mean of those whose mouth is open or closed, and of their mirrored pictures."""
    mean: Shape = np.mean([m for d in donors if d.open == is_open for m in (d.shape, mirrored(d.shape))], 0)
    return mean
