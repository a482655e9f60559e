"""The targets for one face of a persona generator's training: where things go, which pixels are face and bare skin.

Computed from landmarks and colours, at 64 and 128 cells across the crop, without any network.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from visard_preprocess.geometry import CROP_SIZE
from visard_training.data.faces import Gender
from visard_training.personas.frame import Frame
from visard_training.personas.shapes import (
    OPEN_MOUTH,
    Shape,
    cheeks_and_nose,
    mouth_gap,
    moves_map,
    outline_mask,
    pixel_centres,
    sample,
)

FIELD_SIZE, MASK_SIZE = 64, 128

_CORE_SHRINK = 34  # pixels
_EDGE_SHRINK, _EDGE_BLUR = 8, 6.0
_CUT_SIZE, _CUT_ROUNDS = 256, 3  # where skin is told from hair
_BEARD_RAMP = 20  # pixels over which hair becomes beard
_BEARDED = 0.35  # share of the chin's rim that is dark
_BEARD_REACH = 26  # pixels below the jaw that a persona may cover where a beard hangs there


class FaceParts(NamedTuple):
    """What is seen of one face, in pixels of its aligned crop.

    Attributes:
        picture: (512, 512, 3) uint8 RGB.
        shape: (75, 2).
        bare: (512, 512) float32 in 0..1: how much each pixel looks like the skin of cheeks and nose.
        front: (512, 512) float32 in 0..1: hair, hats and hands before the face.
    """

    picture: NDArray[np.uint8]
    shape: Shape
    bare: NDArray[np.float32]
    front: NDArray[np.float32]

    def moved(self, matrix: NDArray[np.float64]) -> FaceParts:
        """Turn, scale and shift everything by a (2, 3) matrix."""
        size = (CROP_SIZE, CROP_SIZE)
        pictures = (
            cv2.warpAffine(each, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
            for each in (self.picture, self.bare, self.front)
        )
        picture, bare, front = pictures
        return FaceParts(picture, self.shape @ matrix[:, :2].T + matrix[:, 2], bare, front)


class Targets(NamedTuple):
    """What the generator's outputs should be for one face and one gender.

    Attributes:
        surroundings: (64, 64, 2) float32 moves in pixels: where what lies around the persona comes from.
        persona: (64, 64, 2) float32 moves in pixels: where in the personas' frame each pixel lies.
        face: (128, 128) float32 in 0..1, after the surroundings have moved: what the persona covers.
        skin: (128, 128) float32 in 0..1, likewise: bare skin, whose light counts.
    """

    surroundings: NDArray[np.float32]
    persona: NDArray[np.float32]
    face: NDArray[np.float32]
    skin: NDArray[np.float32]


def face_parts(picture: NDArray[np.uint8], shape: Shape, gender: Gender) -> FaceParts:
    """Tell skin from what lies before it.

    Args:
        picture: (512, 512, 3) uint8 RGB.
        shape: (75, 2), of its face.
        gender: of the face: below a man's nose hair is a beard, which belongs to the face.
    """
    bare = skin(picture, shape)
    front = _in_front(picture, shape, bare)
    if gender == "male":
        rows = np.mgrid[:CROP_SIZE, :CROP_SIZE][0]
        front *= np.clip((shape[33, 1] - rows) / _BEARD_RAMP + 1, 0, 1).astype(np.float32)
    return FaceParts(picture, shape, bare, front)


def targets(parts: FaceParts, gender: Gender, frame: Frame) -> Targets:
    """Work out what a persona of some gender needs to take a face's place."""
    face = parts.shape
    opened = int(mouth_gap(face) > OPEN_MOUTH)
    shape = frame.model.in_pose_of(frame.persona[gender][opened], face)
    surroundings = moves_map(shape, face, smoothing=3.0, pinned=True)
    where = surroundings + pixel_centres((CROP_SIZE, CROP_SIZE), np.ones(2))
    picture, bare, front = (sample(each, where) for each in (parts.picture, parts.bare, parts.front))
    covered = _covered(picture, shape, bare, front, gender)
    persona = moves_map(shape, frame.frame[opened])
    return Targets(
        _reduced(surroundings, FIELD_SIZE),
        _reduced(persona, FIELD_SIZE),
        _reduced(covered, MASK_SIZE),
        _reduced(bare * outline_mask(shape, 12) * (1 - front), MASK_SIZE).clip(0, 1),
    )


def skin(picture: NDArray[np.uint8], shape: Shape) -> NDArray[np.float32]:
    """How much every pixel of a face looks like its cheeks and nose: (512, 512) float32 in 0..1."""
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    sure = cheeks_and_nose(shape)
    if sure.sum() < 50:
        return outline_mask(shape, 30)
    middle = np.median(lab[sure], 0)
    spread = np.minimum(lab[sure].std(0), [25, 8, 8]) + np.array([14, 4, 4], np.float32)
    near: NDArray[np.float32] = np.exp(-(((lab - middle) / spread) ** 2).sum(-1) / 6)
    return near


def _core(shape: Shape) -> NDArray[np.float32]:
    """What is face whatever its colour: beards, make-up, glasses."""
    rows = np.mgrid[:CROP_SIZE, :CROP_SIZE][0]
    core: NDArray[np.float32] = outline_mask(shape, _CORE_SHRINK) * (rows > shape[17:27, 1].min() - 6)
    return core


def _covered(
    picture: NDArray[np.uint8], shape: Shape, bare: NDArray[np.float32], front: NDArray[np.float32], gender: Gender
) -> NDArray[np.float32]:
    """What the persona covers: the face, but not the hair, hat or hand before it; and a beard that a woman has not."""
    rows = np.mgrid[:CROP_SIZE, :CROP_SIZE][0]
    core = _core(shape)
    covered = np.maximum(outline_mask(shape, _EDGE_SHRINK) * (1 - np.clip(front, 0, 1)), core)
    if gender == "female":
        below = rows > shape[33, 1] + 10
        rim = (outline_mask(shape) > 0) & (outline_mask(shape, 22) == 0) & below
        lightness = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 0].astype(np.float32)
        dark = (bare < 0.2) & (lightness < np.median(lightness[core > 0]) - 12)
        if rim.any() and dark[rim].mean() > _BEARDED:  # it goes below the jaw too
            reach = outline_mask(shape, -_BEARD_REACH) * dark * below
            covered = np.maximum(covered, cv2.dilate(reach, np.ones((9, 9))))
    soft: NDArray[np.float32] = cv2.GaussianBlur(covered, (0, 0), _EDGE_BLUR)
    return soft


def _in_front(picture: NDArray[np.uint8], shape: Shape, bare: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hair and whatever else covers the face's upper part and sides, by colour models of both (GrabCut)."""
    small = (_CUT_SIZE, _CUT_SIZE)
    shown, inside, core, bare = (
        cv2.resize(each, small, interpolation=cv2.INTER_AREA)
        for each in (picture, outline_mask(shape), _core(shape), bare)
    )
    labels = np.full(small, cv2.GC_BGD, np.uint8)
    labels[cv2.dilate(inside, np.ones((5, 5)), iterations=12) * bare > 0.5] = cv2.GC_PR_FGD  # ears and neck
    labels[inside > 0.5] = np.where(bare[inside > 0.5] > 0.35, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels[core > 0.5] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cut = cv2.grabCut(shown, labels, None, *models, _CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)[0]
    front = (((cut == cv2.GC_BGD) | (cut == cv2.GC_PR_BGD)) & (inside > 0.3)).astype(np.float32)
    front = cv2.dilate(cv2.morphologyEx(front, cv2.MORPH_OPEN, np.ones((5, 5))), np.ones((3, 3)))
    enlarged: NDArray[np.float32] = cv2.resize(front, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_LINEAR)
    return enlarged


def _reduced(picture: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    small: NDArray[np.float32] = cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return small
