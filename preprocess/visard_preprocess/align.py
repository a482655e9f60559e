"""Finds the faces in a photo: boxes, 68 landmarks and the quad to cut out. Only this file and `follow` import dlib.

It reports what it finds, faces that are too small, half hidden or doubtful included, with what there is to judge them
by; what becomes of them is the caller's decision. `detect` finds them, at any angle, and `upright` turns each upright.
Here a second detector looks at it, and the landmarks are placed.
"""

from __future__ import annotations

import bz2
import importlib.util
import math
import tempfile
import threading
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import CheckpointError
from visard_preprocess import DETECTOR_THRESHOLD
from visard_preprocess.detect import detect, look_at, looks
from visard_preprocess.geometry import CROP_SIZE, Box, Quad, ffhq_quad, five_point_quad
from visard_preprocess.pixels import pixels_of
from visard_preprocess.recogniser import CHIP_PADDING, CHIP_SIZE, WEIGHTS, describe
from visard_preprocess.upright import (
    PATCH_FACE_PX,
    UPRIGHT,
    Patch,
    Pose,
    centre_of,
    cut_out,
    look_again,
    motley,
    pose_of,
    resize,
    square,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from os import PathLike

# Edge of the box in photo pixels. Over 30 real faces made smaller step by step, landmarks stay within 3 % of the
# distance between the eyes (9 in 10 faces) down to boxes of 36 pixels, and drift by 8 % at 30.
MIN_FACE_PX = 40

# dlib's HOG looks for faces of at least 73–80 pixels, so the scale it works at decides which it can see in a whole
# photo: from 37 pixels up to 2 megapixels, and from 90 pixels at 12 megapixels.
_HOG_PIXELS, _HOG_MIN_SCALE, _HOG_MAX_SCALE = 8e6, 0.8, 2.0

# A head that seems tilted by more than `UPRIGHT`, or that HOG sees with a lower score than `_SURE`, is tried at other
# angles, too.
_SURE = 0.4
_FAN = math.radians(25)

_HOG_FACE_PX = 110  # HOG looks at one face at this size

# Something lies before a face where HOG's score is below so much for each level by which its colours differ (`motley`),
# less this. Of painted masks and hidden halves that HOG sees nevertheless 41 in 44 are below; of 988 faces with nothing
# before them 28 (3 %), most of them lit from one side, in sunglasses with a beard, or seen from the side.
_SCORE_PER_LEVEL, _SCORE_LESS = 0.05, 0.35

_LANDMARKS = 68
# Mean distance of landmarks from YuNet's five points, of the box's edge: over 128 faces 99 % are below 0.11, and the
# largest, of a profile, is 0.24.
_PLAUSIBLE = 0.2

# Of the distance between the eyes: how far the landmarks of a generated face, those of the jaw left out, lie on average
# from the original's. Of 523 swaps that were looked at five had moved more, and each of them looked pasted on.
_INNER, _MOVED = slice(17, 68), 0.2

_ALIGNED_BOX = (108, 148, 411, 451)  # where the detector's box lies in a 512-pixel crop, median over real faces

_PREDICTOR_MAX_BYTES = 256 * 2**20  # unpacked; the published one has 95 MiB
PREDICTOR_FILE = "shape_predictor_68_face_landmarks.dat"

_loading = threading.Lock()
_of_thread = threading.local()


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One face in a photo.

    Attributes:
        box: (left, top, right, bottom) in photo pixels, counted from the photo's top left corner; a square from the
            brows to the chin, upright whatever the face's angle; may leave the photo. The one that a person drew
            where it was drawn by hand.
        landmarks: (68, 2) float64, x before y, in pixel-index coordinates of the photo; None where what the predictor
            placed cannot be this face.
        confidence: 0..1, YuNet's score; of no fixed scale where dlib's HOG alone was asked; 0 where a person drew it.
        quad: the FFHQ square around the face, by its landmarks or else by its five points.
        points: (5, 2) float64, likewise: eyes, tip of the nose and corners of the mouth as YuNet sees them; None where
            HOG alone was asked.
        confirmed: whether dlib's HOG, shown the face upright, sees it too. It sees whole faces that look roughly at
            the camera: most others are faces nevertheless.
        obstructed: whether something seems to lie before it, a mask or half of it: HOG is too little sure for how much
            its colours differ from place to place.
        by_hand: whether a person drew its box; see `by_hand`.
    """

    box: Box
    landmarks: NDArray[np.float64] | None = field(repr=False)
    confidence: float
    quad: Quad
    points: NDArray[np.float64] | None = field(default=None, repr=False)
    confirmed: bool = True
    obstructed: bool = False
    by_hand: bool = False

    @property
    def size_px(self) -> float:
        """Edge of the box in photo pixels."""
        return self.box[2] - self.box[0]

    @property
    def too_small(self) -> bool:
        """Whether the face is below `MIN_FACE_PX`, where landmarks stop being trustworthy."""
        return min(self.size_px, self.box[3] - self.box[1]) < MIN_FACE_PX


class FaceFinder:
    """Finds faces. One thread at a time may use it: `finder` gives each thread its own.

    Args:
        landmarks_model: path of a 68-point predictor, `.dat` or `.dat.bz2`, instead of the installed one.

    Raises:
        CheckpointError: a model file is missing, damaged or of another kind.
    """

    def __init__(self, landmarks_model: str | PathLike[str] | None = None) -> None:
        path = installed_model(PREDICTOR_FILE) if landmarks_model is None else Path(landmarks_model)
        with _loading:
            self._predictor = _load_predictor(path)
        self._hog = dlib.get_frontal_face_detector()

    def find(self, photo: NDArray[np.uint8], threshold: float = DETECTOR_THRESHOLD) -> tuple[Face, ...]:
        """Find every face at any angle, the largest first.

        Args:
            photo: (H, W, 3) uint8 RGB.
            threshold: the score, 0..1, from which on something is a face.
        """
        return _largest_first(self.face_of(photo, pose_of(each), each.score) for each in detect(photo, threshold))

    def find_frontal(self, photo: NDArray[np.uint8]) -> tuple[Face, ...]:
        """Find the faces that dlib's HOG sees by itself, the largest first.

        For training data and measurements, which want whole, upright faces that look roughly at the camera and
        nothing else.

        Args:
            photo: (H, W, 3) uint8 RGB.
        """
        grey = Image.fromarray(photo).convert("L")  # as many faces as in colour, in two thirds of the time
        scale = max(_HOG_MIN_SCALE, min(_HOG_MAX_SCALE, math.sqrt(_HOG_PIXELS / (grey.width * grey.height))))
        copy = resize(grey, scale)
        per_pixel = grey.width / copy.width, grey.height / copy.height
        faces = []
        for box, confidence in self._see(copy, per_pixel):
            patch = cut_out(photo, Pose(box=box))
            landmarks = patch.to_photo(self._predict(patch.picture, patch.box))
            faces.append(Face(box=box, landmarks=landmarks, confidence=confidence, quad=ffhq_quad(landmarks)))
        return _largest_first(faces)

    def descriptor(self, aligned: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Describe whose face it is.

        The face is not detected again: alignment says where it is. So a generated face that no detector would accept
        has a descriptor too.

        Args:
            aligned: (512, 512, 3) uint8 RGB.

        Returns:
            (128,) float64. Two pictures of one person lie less than 0.6 apart (Euclidean distance).
        """
        chip = dlib.get_face_chip(aligned, self._aligned_shape(aligned), CHIP_SIZE, CHIP_PADDING)
        descriptor: NDArray[np.float64] = describe([chip], installed_model(WEIGHTS))[0]
        return descriptor

    def descriptors(self, faces: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64] | None]]) -> NDArray[np.float64]:
        """Describe several faces at once.

        Args:
            faces: (512, 512, 3) uint8 RGB and its (68, 2) landmarks, by which the face is cut out; None describes the
                whole crop, with hair, ears and neck.

        Returns:
            (N, 128) float64, as `descriptor` has them.
        """
        chips = [
            np.asarray(Image.fromarray(aligned).resize((CHIP_SIZE, CHIP_SIZE), Image.Resampling.BOX))
            if landmarks is None
            else dlib.get_face_chip(aligned, _shape(landmarks), CHIP_SIZE, CHIP_PADDING)
            for aligned, landmarks in faces
        ]
        return describe(chips, installed_model(WEIGHTS))

    def landmarks(self, aligned: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Place the landmarks of an aligned face, which is not detected again either.

        Args:
            aligned: (512, 512, 3) uint8 RGB.

        Returns:
            (68, 2) float64, x before y, in pixel-index coordinates of the crop.
        """
        return np.array([(point.x, point.y) for point in self._aligned_shape(aligned).parts()], np.float64)

    def takes_its_place(self, swapped: NDArray[np.uint8], aligned: NDArray[np.uint8]) -> bool:
        """Tell whether a generated face is one, and lies as the face did in whose place it is to come.

        YuNet and HOG both see it, and its landmarks from the brows to the mouth lie where those of the original are.

        Args:
            swapped: (512, 512, 3) uint8 RGB.
            aligned: likewise, the original.
        """
        *_, small = looks(np.asarray(Image.fromarray(swapped).reduce(2)))  # the brighter one in the dark
        left, top, right, bottom = (edge / 2 for edge in _ALIGNED_BOX)
        _, boxes, _ = look_at(small, DETECTOR_THRESHOLD)
        x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
        if not ((left < x) & (x < right) & (top < y) & (y < bottom)).any():
            return False
        if not self._see(resize(Image.fromarray(small).convert("L"), _HOG_FACE_PX / (right - left)), (1.0, 1.0)):
            return False
        before, after = self.landmarks(aligned), self.landmarks(swapped)
        left_eye, right_eye = _five(before)[:2]
        moved = np.linalg.norm(after - before, axis=1)[_INNER].mean()
        return bool(moved <= _MOVED * np.linalg.norm(right_eye - left_eye))

    def _aligned_shape(self, aligned: NDArray[np.uint8]) -> Any:
        if aligned.shape != (CROP_SIZE, CROP_SIZE, 3):
            raise ValueError(f"an aligned face is ({CROP_SIZE}, {CROP_SIZE}, 3), not {aligned.shape}")
        return self._predictor(aligned, dlib.rectangle(*_ALIGNED_BOX))

    def face_of(self, photo: NDArray[np.uint8], pose: Pose, confidence: float) -> Face:
        """Turn one face upright, have HOG look at it, and place its landmarks.

        Args:
            photo: (H, W, 3) uint8 RGB.
            pose: how it seems to lie in the photo.
            confidence: see `Face`.
        """
        best = self._look(photo, pose)
        surely_upright = best.score >= _SURE and not best.pose.turned
        if not surely_upright and best.edge >= MIN_FACE_PX and (again := look_again(photo, best.pose)) is not None:
            for turn in (0.0, -_FAN, _FAN):
                other = self._look(photo, replace(again, turn=again.turn + turn))
                if other.score > best.score or (not best.confirmed and not turn):
                    best = other
                if best.score >= _SURE:
                    break
        placed = self._predict(best.patch.picture, best.box)
        left = ffhq_quad(best.patch.to_photo(placed)).angle - best.patch.turn
        if abs(math.remainder(left, 2 * math.pi)) > UPRIGHT:  # the predictor knows better than YuNet how it is turned
            other = self._look(photo, replace(best.pose, turn=best.patch.turn + left))
            if other.score >= best.score:
                best, placed = other, self._predict(other.patch.picture, other.box)
        landmarks = best.patch.to_photo(placed)
        apart = float(np.linalg.norm(_five(landmarks) - best.pose.points, axis=1).mean())
        plausible = apart <= _PLAUSIBLE * best.edge
        return Face(
            box=best.box_in_photo,
            landmarks=landmarks if plausible else None,
            confidence=confidence,
            quad=ffhq_quad(landmarks) if plausible else five_point_quad(best.pose.points),
            points=best.pose.points,
            confirmed=best.confirmed,
            obstructed=best.score < _SCORE_PER_LEVEL * motley(best.patch.picture, placed) - _SCORE_LESS,
        )

    def _look(self, photo: NDArray[np.uint8], pose: Pose) -> _Look:
        """Have HOG look at the face in the middle of a patch."""
        patch = cut_out(photo, pose)
        small = resize(patch.picture.convert("L"), _HOG_FACE_PX / PATCH_FACE_PX)
        per_pixel = patch.picture.width / small.width, patch.picture.height / small.height
        x, y = centre_of(patch.box)
        found = [
            (score, box) for box, score in self._see(small, per_pixel) if box[0] < x < box[2] and box[1] < y < box[3]
        ]
        score, box = max(found, default=(0.0, patch.box))
        return _Look(pose=pose, patch=patch, box=box, score=score, confirmed=bool(found))

    def _see(self, grey: Image.Image, per_pixel: tuple[float, float]) -> list[tuple[Box, float]]:
        """What HOG sees: boxes, multiplied by what the picture was reduced by, and scores."""
        rectangles, scores, _ = self._hog.run(np.asarray(grey), 0, 0.0)
        x, y = per_pixel  # the right and bottom pixels of dlib's rectangles belong to them
        return [
            ((r.left() * x, r.top() * y, (r.right() + 1) * x, (r.bottom() + 1) * y), float(score))
            for r, score in zip(rectangles, scores, strict=True)
        ]

    def _predict(self, picture: Image.Image, box: Box) -> NDArray[np.float64]:
        """(68, 2) landmarks in pixel-index coordinates of a picture."""
        low, high = np.rint(box[:2]).astype(int), np.rint(box[2:]).astype(int) - 1
        shape = self._predictor(pixels_of(picture), dlib.rectangle(*map(int, low), *map(int, high)))
        return np.array([(point.x, point.y) for point in shape.parts()], np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Look:
    """What HOG saw of one face at one angle.

    Attributes:
        pose: how the face was thought to lie.
        patch: what HOG was shown.
        box: HOG's in the patch, or what would be HOG's.
        score: HOG's, 0 where it saw nothing.
        confirmed: whether it saw something.
    """

    pose: Pose
    patch: Patch
    box: Box
    score: float
    confirmed: bool

    @property
    def edge(self) -> float:
        """Edge of the box in photo pixels."""
        return (self.box[2] - self.box[0]) / self.patch.scale

    @property
    def box_in_photo(self) -> Box:
        """The same box upright in the photo."""
        return square(self.patch.to_photo(np.array(centre_of(self.box)) - 0.5) + 0.5, self.edge)


def finder(landmarks_model: str | PathLike[str] | None = None) -> FaceFinder:
    """Get the calling thread's own `FaceFinder`, built at its first call.

    The landmark predictor, nearly all of a finder's 100 MB, is shared by all threads.
    """
    if not hasattr(_of_thread, "finders"):
        _of_thread.finders = {}
    finders: dict[str | None, FaceFinder] = _of_thread.finders
    key = None if landmarks_model is None else str(landmarks_model)
    if key not in finders:
        finders[key] = FaceFinder(landmarks_model)
    return finders[key]


def _shape(landmarks: NDArray[np.float64]) -> Any:
    """(68, 2) landmarks as dlib has them: whole pixels."""
    points = [dlib.point(int(x), int(y)) for x, y in np.rint(landmarks)]
    return dlib.full_object_detection(dlib.rectangle(*_ALIGNED_BOX), points)


def _five(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """(68, 2) landmarks as YuNet's five points."""
    return np.stack([landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0), *landmarks[[30, 48, 54]]])


def _largest_first(faces: Iterable[Face]) -> tuple[Face, ...]:
    return tuple(sorted(faces, key=lambda face: face.size_px, reverse=True))


def installed_model(name: str) -> Path:
    """Path of a model in `face_recognition_models`, which is not imported: it needs the removed `pkg_resources`."""
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in spec.submodule_search_locations or [] if spec else []:
        return Path(folder) / "models" / name
    raise CheckpointError(f"{name} is not installed: pip install face_recognition_models")


@cache
def _load_predictor(path: Path) -> Any:
    if path.suffix != ".bz2":
        predictor = _load(dlib.shape_predictor, path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / "predictor.dat"  # dlib reads models from files alone
            try:
                with bz2.open(path) as packed:  # a bomb is cut off here and fails below as a damaged model
                    unpacked.write_bytes(packed.read(_PREDICTOR_MAX_BYTES))
            except (OSError, EOFError) as error:
                raise _unusable(path, error) from error
            predictor = _load(dlib.shape_predictor, unpacked)
    points = predictor(np.zeros((9, 9), np.uint8), dlib.rectangle(0, 0, 8, 8)).num_parts
    if points != _LANDMARKS:
        raise CheckpointError(f"'{path}' predicts {points} landmarks, not {_LANDMARKS}: give a 68-point predictor")
    return predictor


def _load(kind: Callable[[str], Any], path: Path) -> Any:
    try:
        return kind(str(path))
    except RuntimeError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> CheckpointError:
    reason = "it does not exist" if not path.exists() else str(error)
    return CheckpointError(
        f"cannot load the model '{path}' ({reason}): give a file from http://dlib.net/files/, or leave it out "
        "to use the one that pip installs with face_recognition_models"
    )
