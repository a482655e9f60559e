"""The transition between the average woman and the average man, and one face moved along it.

What a difference of class centres is in StyleGAN2's space of w, this is in the space of landmarks and appearance: the
shape and the texture of each class, averaged over aligned photographs. A face is moved by a signed *multiple* of the
difference between them: +1 to male, −1 to female, 0 leaves it as it is. The movement is a row of named stages, each a
function of the picture before it.

Pictures are worked on in CIE Lab (float32, L in 0..100). It knows nothing about files, classifiers or pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from visard_training import warp
from visard_training.warp import Floats, Shape, blur

Image = NDArray[np.uint8]

# What a multiple of one moves, in differences of the class means. More than one of each: a generator that learns from
# the pairs reaches some 80 % of what it is shown. From three on, faces are caricatures.
_SHAPE, _MOUTH = 1.5, 1.0
_LOW, _HIGH = 1.7, 1.3  # texture, coarser and finer than the blur below
_SPLIT_SIGMA = 6
_SKIN_TONE = 0.5  # of the difference in overall skin tone: it is make-up and light as much as gender
_L_LIMIT = 12  # tanh-limit of the change in lightness: more looks like dirt
_PULL, _PULL_SIGMA = 0.3, 3  # towards the mean face of the other class

_BANDS = (1.0, 2.0, 4.0, 8.0)  # σ between which the bands of L lie
_ENERGY_SIGMA, _ENERGY_FLOOR = 6, 0.02
_BAND_GAIN, _MAX_GAIN = 0.6, 3.0

_STUBBLE, _STUBBLE_SIGMA = 0.6, 3
_LIP_COLOUR = 0.8
_GREY_CHROMA = 6  # mean chroma below which a photo counts as black and white, and must stay it
_SKIN_LIGHTNESS = 65  # L of the faces that the differences mostly come from; on darker skin they are weaker
_MIN_SKIN = 0.4
_HAIR_DARKER, _HAIR_RAMP = 12, 10  # L below the skin at which what hangs into the forehead is hair, and how sharply

_FADE_GROW, _FADE_SIGMA = 1.25, 16  # the region in which the shape may change, and its edge


@dataclass(frozen=True, kw_only=True, eq=False)
class Transition:
    """Difference between the class means, male − female, in the frame of the mean shape.

    Attributes:
        mean_shape: (68, 2) in pixels of the textures.
        shape: (68, 2) difference of the shapes.
        mean_texture: (S, S, 3) Lab, half way between the classes.
        texture: (S, S, 3) Lab difference.
        energy: (S, S, 4) difference of the log amplitude of each band of L.
        stubble: (S, S) fine part of L of one stubbled man. One for all: a generator can learn it, a random one not.
    """

    mean_shape: Shape
    shape: Shape
    mean_texture: Floats
    texture: Floats
    energy: Floats
    stubble: Floats

    @property
    def size(self) -> int:
        """Edge of the pictures that it was fitted on and moves, in pixels."""
        return len(self.texture)

    def mean_face(self, sign: float) -> Floats:
        """(S, S, 3) Lab texture of the mean man (+1) or the mean woman (−1)."""
        return self.mean_texture + np.float32(sign / 2) * self.texture

    @cached_property
    def coarse_and_fine(self) -> tuple[Floats, Floats]:
        """The texture difference split at a blur, the coarse part with a share of its overall skin tone removed."""
        coarse = blur(self.texture, _SPLIT_SIGMA)
        face = warp.face_mask(self.mean_shape, self.size)[..., None]
        return coarse - (1 - _SKIN_TONE) * _mean(coarse, face), self.texture - coarse


def fit_transition(
    shapes: Shape, male: NDArray[np.bool_], covariates: NDArray[np.float64], image: Callable[[int], Image], size: int
) -> Transition:
    """Fit shape and texture of a face as a linear function of gender and covariates; the transition is gender's part.

    Least squares over [1, male ± ½, covariates], so that a difference in age, expression or ethnicity between the
    women and the men is not taken for gender. One image is held at a time.

    Args:
        shapes: (N, 68, 2) landmarks in the aligned pictures.
        male: (N,) whether each face is a man's.
        covariates: (N, K), K may be 0.
        image: gives the i-th aligned picture, (size, size, 3) uint8 RGB.
        size: edge of the pictures in pixels.

    Raises:
        ValueError: the faces do not tell gender from the covariates.
    """
    half = male - 0.5
    design = np.column_stack([np.ones(len(male)), half, covariates - covariates.mean(0)])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"{len(male)} faces do not tell gender apart from the {covariates.shape[1]} covariates")
    weight = np.linalg.pinv(design)[1]  # a coefficient is this weighted sum over the faces

    both = (shapes + warp.mirrored(shapes, size)) / 2
    shape = np.tensordot(weight, both, 1)
    mean_shape = both.mean(0) - half.mean() * shape

    texture, mean_texture = np.zeros((2, size, size, 3), np.float32)
    energy = np.zeros((size, size, len(_BANDS)), np.float32)
    stubble, strongest = np.zeros((size, size), np.float32), -np.inf
    beard = warp.beard_mask(mean_shape, size)
    for i, share in enumerate(weight.astype(np.float32)):
        face = warp.sample(_lab(image(i)), warp.backward_map(shapes[i], mean_shape, size))
        log_energy = np.log(blur(_bands(face[..., 0])[0] ** 2, _ENERGY_SIGMA) + _ENERGY_FLOOR)
        texture += share * _symmetric(face)
        mean_texture += _symmetric(face) / len(male)
        energy += share * _symmetric(log_energy)
        roughness = float(_mean(log_energy[..., 1:2], beard[..., None])[0])
        if male[i] and roughness > strongest:
            fine = face[..., 0] - blur(face[..., 0], _STUBBLE_SIGMA)
            stubble, strongest = np.minimum(fine, fine / 3), roughness  # hairs are darker than skin
    mean_texture -= np.float32(half.mean()) * texture
    return Transition(
        mean_shape=mean_shape,
        shape=shape,
        mean_texture=mean_texture,
        texture=texture,
        energy=energy / 2,  # of the amplitude, the root of the energy
        stubble=stubble,
    )


def move(image: Image, landmarks: Shape, transition: Transition, multiple: float) -> Image:
    """Move a face along the transition.

    Args:
        image: (S, S, 3) uint8 RGB aligned face, S the transition's size.
        landmarks: (68, 2) in the picture.
        transition: the way between the classes.
        multiple: above 0 towards male, below 0 towards female; 0 returns the picture as it is.

    Returns:
        (S, S, 3) uint8 RGB; away from the face it is the photo to the last bit.
    """
    *_, (_, moved) = stages(image, landmarks, transition, multiple)
    return moved


def stages(image: Image, landmarks: Shape, transition: Transition, multiple: float) -> Iterator[tuple[str, Image]]:
    """Move a face as `move` does, and give the picture after each stage, the first being `photo`."""
    yield "photo", image
    if multiple == 0:
        return
    site = _Site(image, landmarks, transition, multiple)
    yield "shape", site.warped
    inside = site.face[..., None] > 0
    picture = site.picture
    for name, change in _TO_MALE if multiple > 0 else _TO_FEMALE:
        picture = change(picture, site)
        yield name, np.where(inside, _rgb(picture), site.warped)


class _Site:
    """Where on one picture a transition takes place: the moved shape, its masks, and the way from the mean face.

    Attributes:
        sign: +1 to male, −1 to female.
        multiple: of the transition, never negative.
        amount: the same, at most 1: for what cannot be done more than once.
        landmarks: the moved shape.
        warped: the photo in that shape; `picture` is the same in Lab.
        face: mask of the bare face, hair that hangs into the forehead left out.
        beard: mask of the region where a beard grows.
        dose: (3,) share of a change in L, a and b that suits this skin.
    """

    def __init__(self, image: Image, landmarks: Shape, transition: Transition, multiple: float) -> None:
        size = transition.size
        self.transition = transition
        self.sign = float(np.sign(multiple))
        self.multiple = abs(multiple)
        self.amount = min(1.0, self.multiple)
        self.landmarks = landmarks + multiple * _displacement(landmarks, transition)
        still = warp.grid(size)
        near = warp.face_mask(self.landmarks, size, grow=_FADE_GROW, feather=_FADE_SIGMA)[..., None]
        shift = near * (warp.backward_map(landmarks, self.landmarks, size) - still)
        self.warped = warp.sample(image, still + shift)
        self.picture = _lab(self.warped)
        self._from_mean = warp.backward_map(transition.mean_shape, self.landmarks, size)

        face = warp.face_mask(self.landmarks, size)
        tone = _mean(np.dstack([self.picture, np.hypot(self.picture[..., 1], self.picture[..., 2])]), face[..., None])
        colour = min(1.0, tone[3] / _GREY_CHROMA) * np.clip(tone[0] / _SKIN_LIGHTNESS, _MIN_SKIN, 1)
        self.dose = np.array([1, colour, colour], np.float32)
        self.face = face * (1 - self._fringe(float(tone[0])))
        self.beard = warp.beard_mask(self.landmarks, size) * face

    def carry(self, field: Floats) -> Floats:
        """Bring a picture of the mean face onto this one."""
        return warp.sample(field, self._from_mean, cubic=False)

    @cached_property
    def target(self) -> Floats:
        """Lab texture of the mean face of the class that the face moves to."""
        return self.carry(self.transition.mean_face(self.sign))

    def _fringe(self, skin_lightness: float) -> Floats:
        """Mask of what is darker than skin above the brows."""
        dark = np.clip((skin_lightness - _HAIR_DARKER - self.picture[..., 0]) / _HAIR_RAMP, 0, 1)
        start = self.landmarks[warp.BROWS, 1].min()
        ramp = 0.15 * warp.eye_distance(self.landmarks)
        above = np.clip((start - np.arange(self.transition.size)) / ramp, 0, 1).astype(np.float32)
        return blur(dark * above[:, None], 3)


def _displacement(landmarks: Shape, transition: Transition) -> Shape:
    """What a multiple of one moves each landmark by, on this head's own scale and turn."""
    share = np.full((len(landmarks), 1), _SHAPE)
    share[warp.MOUTH] = _MOUTH
    turn = warp.affine(transition.mean_shape, landmarks)[:2]
    return np.asarray(share * (transition.shape @ turn), np.float64)


def _gain_bands(picture: Floats, site: _Site) -> Floats:
    """Make the skin as rough or as smooth as the other class's, band by band."""
    bands, rest = _bands(picture[..., 0])
    exponent = site.sign * site.multiple * _BAND_GAIN * site.carry(site.transition.energy)
    gain = np.clip(np.exp(exponent), 1 / _MAX_GAIN, _MAX_GAIN)
    lightness = rest + (bands * (1 + (gain - 1) * site.face[..., None])).sum(-1)
    return np.dstack([lightness, picture[..., 1:]])


def _pull(picture: Floats, site: _Site) -> Floats:
    """Draw the coarse appearance towards the mean face of the other class, at this face's own skin tone."""
    face = site.face[..., None]
    tone = _mean(picture - site.target, face)
    distance = blur(site.target, _PULL_SIGMA) + tone - blur(picture, _PULL_SIGMA)
    return picture + site.amount * _PULL * face * distance * site.dose


def _add_texture(picture: Floats, site: _Site) -> Floats:
    """Add the difference of the mean textures."""
    coarse, fine = (site.carry(part) for part in site.transition.coarse_and_fine)
    change: Floats = site.sign * site.multiple * (_LOW * coarse + _HIGH * fine)
    change[..., 0] = _L_LIMIT * np.tanh(change[..., 0] / _L_LIMIT)
    return picture + site.face[..., None] * change * site.dose


def _shave(picture: Floats, site: _Site) -> Floats:
    """Replace beard by the mean woman's skin at this face's tone, and calm what stubble remains."""
    skin, weight = _beard(picture, site)
    detail = picture - blur(picture, 2)
    picture = picture + site.amount * weight[..., None] * (skin + 0.15 * detail - picture)
    bands, rest = _bands(picture[..., 0])
    keep = 1 - site.amount * site.beard[..., None] * np.array([0.42, 0.42, 0.3, 0], np.float32)
    return np.dstack([rest + (bands * keep).sum(-1), picture[..., 1:]])


def _beard(picture: Floats, site: _Site) -> tuple[Floats, Floats]:
    """Tell beard from skin: it is darker than the mean woman's skin at this face's tone, or rougher.

    Returns:
        (S, S, 3) that skin, and (S, S) in 0..1 how much of a beard covers it.
    """
    size = site.transition.size
    elsewhere = site.face * (1 - site.beard) * (1 - warp.mouth_mask(site.landmarks, size, grow=1.2))
    elsewhere *= 1 - np.minimum(warp.eyes_mask(site.landmarks, size), 1)
    elsewhere[: max(0, int(site.landmarks[19:25, 1].mean()))] = 0  # no fringe
    lightness = picture[..., 0]
    usual = np.median(lightness[elsewhere > 0.5]) if (elsewhere > 0.5).any() else 50.0
    elsewhere = elsewhere * np.exp(-(((lightness - usual) / 15) ** 2))  # neither shine nor shadow
    skin = blur(site.carry(site.transition.mean_face(-1)), 2)
    skin = skin + _mean(picture - skin, elsewhere[..., None])
    darker = (skin[..., 0] - blur(lightness, 5) - 3) / 10
    rougher = (np.sqrt(blur((lightness - blur(lightness, 2)) ** 2, 6)) - 3) / 3
    return skin, blur(np.clip(np.maximum(darker, rougher), 0, 1), 6) * site.beard


def _add_stubble(picture: Floats, site: _Site) -> Floats:
    """Add the stubble of one man, weaker on darker skin."""
    contrast = np.clip(blur(picture[..., 0], 8) / _SKIN_LIGHTNESS, _MIN_SKIN, 1.3)
    stubble = site.carry(site.transition.stubble) * contrast * site.beard
    return np.dstack([picture[..., 0] + site.amount * _STUBBLE * stubble, picture[..., 1:]])


def _pale_lips(picture: Floats, site: _Site) -> Floats:
    """Draw the colour of the lips, and of what is painted on them, towards the mean man's."""
    lips = warp.lips_mask(site.landmarks, site.transition.size)[..., None]
    skin = site.face[..., None] * (1 - lips)
    goal = blur(site.target, 2) + _mean(picture - site.target, skin)
    distance = (goal - picture) * site.dose
    distance[..., 0] = 0
    return picture + site.amount * _LIP_COLOUR * lips * distance


_Stage = tuple[str, Callable[[Floats, _Site], Floats]]
_TO_MALE: tuple[_Stage, ...] = (
    ("bands", _gain_bands),
    ("pull", _pull),
    ("texture", _add_texture),
    ("lips", _pale_lips),
    ("stubble", _add_stubble),
)
_TO_FEMALE: tuple[_Stage, ...] = (
    ("bands", _gain_bands),
    ("pull", _pull),
    ("texture", _add_texture),
    ("shave", _shave),
)


def bearded_share(image: Image, landmarks: Shape, transition: Transition) -> float:
    """Share of the beard region that a beard covers, 0..1, as the `shave` stage sees it."""
    site = _Site(image, landmarks, transition, 0.0)
    _, weight = _beard(site.picture, site)
    return float(weight.sum() / max(float(site.beard.sum()), 1e-6))


def _lab(image: Image) -> Floats:
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def _rgb(picture: Floats) -> Image:
    return np.clip(cv2.cvtColor(picture, cv2.COLOR_LAB2RGB) * 255 + 0.5, 0, 255).astype(np.uint8)


def _bands(lightness: Floats) -> tuple[Floats, Floats]:
    """Split L into bands: (S, S, 4) from fine to coarse, and the (S, S) rest; their sum is L."""
    levels = [lightness, *(blur(lightness, sigma) for sigma in _BANDS)]
    return np.dstack([fine - coarse for fine, coarse in itertools.pairwise(levels)]), levels[-1]


def _mean(picture: Floats, mask: Floats) -> Floats:
    total: Floats = (picture * mask).sum((0, 1)) / max(float(mask.sum()), 1e-6)
    return total


def _symmetric(picture: Floats) -> Floats:
    return (picture + picture[:, ::-1]) / 2
