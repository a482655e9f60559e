"""Faces with a planted difference between the genders, all made from one photograph in the public domain."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_training import warp

SIZE = 128
ASTRONAUT = Path(__file__).resolve().parents[1] / "client" / "visard" / "data" / "astronaut.jpg"

JAW_WIDER = 2.0  # pixels of each side of a man's jaw, at SIZE
CHIN_DARKER = 6.0  # L of a man's chin


@cache
def base_face(size: int = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The aligned photograph and its landmarks; the face in it is a woman's."""
    photo = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    face = finder().find(photo)[0]
    return crop(photo, face.quad, size), face.quad.to_crop(face.landmarks, size)


def planted_shape() -> NDArray[np.float64]:
    """(68, 2) male − female."""
    difference = np.zeros((68, 2))
    difference[2:8, 0], difference[9:15, 0] = -JAW_WIDER, JAW_WIDER
    return difference


def planted_face(male: bool, age: float = 0.0, noise: float = 0.0, seed: int = 0) -> tuple[NDArray, NDArray]:
    """A face of either gender at `SIZE`; age lengthens it and makes it paler, as gender must not."""
    image, base = base_face()
    landmarks = base + (0.5 if male else -0.5) * planted_shape()
    landmarks[:, 1] += age * (base[:, 1] - base[27, 1]) * 0.04
    landmarks += np.random.default_rng(seed).normal(0, noise, landmarks.shape)
    warped = warp.sample(image, warp.backward_map(base, landmarks, SIZE))
    lab = cv2.cvtColor(warped.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    chin = warp.beard_mask(landmarks, SIZE)
    lab[..., 0] += (-0.5 if male else 0.5) * CHIN_DARKER * chin + 3 * age
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255 + 0.5, 0, 255).astype(np.uint8), landmarks
