"""Finds the faces in a photo: boxes, 68 landmarks and the quad to cut out. Only this file imports dlib.

It reports what it finds, faces that are too small included; whether a photo is refused is the caller's decision. It
finds upright faces: a head that lies on its side, or that is seen from behind, is none to these detectors.
"""

from __future__ import annotations

import bz2
import importlib.util
import math
import tempfile
import threading
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import CheckpointError
from visard_preprocess import Detector
from visard_preprocess.geometry import CROP_SIZE, Quad, ffhq_quad, part_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

Box = tuple[float, float, float, float]

# Edge of the box in photo pixels. Over 30 real faces made smaller step by step, landmarks stay within 3 % of the
# distance between the eyes (9 in 10 faces) down to boxes of 36 pixels, and drift by 8 % at 30.
MIN_FACE_PX = 40

# Both detectors look for faces of at least 73–80 pixels, so the scale they work at decides which faces can be seen:
# with HOG from 37 pixels up to 2 megapixels, and from 90 pixels at 12 megapixels. Larger photos are reduced no
# further, whatever time it takes: a face that was missed stays visible.
_HOG_PIXELS, _HOG_MIN_SCALE = 8e6, 0.8
_CNN_PIXELS = 2e6  # the network needs about 1 GB per megapixel
_MAX_SCALE = 2.0

_LANDMARKS = 68
_LANDMARK_FACE_PX = 300  # the predictor answers in whole pixels of the copy it sees
_PATCH_MARGIN = 0.5  # of the box's edge: landmarks may leave the box

_ALIGNED_BOX = (108, 148, 411, 451)  # where the detector's box lies in a 512-pixel crop, median over real faces

_CHIP_SIZE, _CHIP_PADDING = 150, 0.25  # what dlib's recogniser was trained on

_PREDICTOR_MAX_BYTES = 256 * 2**20  # unpacked; the published one has 95 MiB
_PREDICTOR_FILE = "shape_predictor_68_face_landmarks.dat"
_DETECTOR_FILE = "mmod_human_face_detector.dat"
_RECOGNISER_FILE = "dlib_face_recognition_resnet_model_v1.dat"

_loading = threading.Lock()
_of_thread = threading.local()


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One face in a photo.

    Attributes:
        box: (left, top, right, bottom) in photo pixels, counted from the photo's top left corner; may leave the photo.
        landmarks: (68, 2) float64, x before y, in pixel-index coordinates of the photo.
        confidence: the detector's score: above 0 for a face, of no fixed scale.
        quad: the FFHQ square around the face.
    """

    box: Box
    landmarks: NDArray[np.float64] = field(repr=False)
    confidence: float
    quad: Quad

    @property
    def size_px(self) -> float:
        """Edge of the box in photo pixels."""
        return self.box[2] - self.box[0]

    @property
    def too_small(self) -> bool:
        """Whether the face is below `MIN_FACE_PX`, where landmarks stop being trustworthy."""
        return self.size_px < MIN_FACE_PX


class FaceFinder:
    """Finds faces. One thread at a time may use it: `finder` gives each thread its own.

    Args:
        detector: `hog` for faces that look roughly at the camera, `cnn` for more poses at many times the cost.
        landmarks_model: path of a 68-point predictor, `.dat` or `.dat.bz2`, instead of the installed one.

    Raises:
        CheckpointError: a model file is missing, damaged or of another kind.
    """

    def __init__(self, detector: Detector = "hog", landmarks_model: str | PathLike[str] | None = None) -> None:
        if detector not in get_args(Detector):
            raise ValueError(f"detector must be one of {', '.join(get_args(Detector))}, not {detector!r}")
        path = installed_model(_PREDICTOR_FILE) if landmarks_model is None else Path(landmarks_model)
        with _loading:
            self._predictor = _load_predictor(path)
        if detector == "cnn":
            self._detect: Callable[[NDArray[np.uint8]], list[tuple[Box, float]]] = self._detect_cnn
            self._detector = _load(dlib.cnn_face_detection_model_v1, installed_model(_DETECTOR_FILE))
        else:
            self._detect = self._detect_hog
            self._detector = dlib.get_frontal_face_detector()

    def find(self, photo: NDArray[np.uint8]) -> tuple[Face, ...]:
        """Find every face, the largest first. Of boxes that overlap, dlib itself keeps the best.

        Args:
            photo: (H, W, 3) uint8 RGB.
        """
        faces = []
        for box, confidence in self._detect(photo):
            landmarks = self._landmarks(photo, box)
            faces.append(Face(box=box, landmarks=landmarks, confidence=confidence, quad=ffhq_quad(landmarks)))
        return tuple(sorted(faces, key=lambda face: face.size_px, reverse=True))

    def descriptor(self, aligned: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Describe whose face it is.

        The face is not detected again: alignment says where it is. So a generated face that no detector would accept
        has a descriptor too.

        Args:
            aligned: (512, 512, 3) uint8 RGB.

        Returns:
            (128,) float64. Two pictures of one person lie less than 0.6 apart (Euclidean distance).
        """
        return np.array(self._recogniser.compute_face_descriptor(aligned, self._aligned_shape(aligned)))

    def descriptors(self, faces: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64] | None]]) -> NDArray[np.float64]:
        """Describe several faces at once.

        Args:
            faces: (512, 512, 3) uint8 RGB and its (68, 2) landmarks, by which the face is cut out; None describes the
                whole crop, with hair, ears and neck.

        Returns:
            (N, 128) float64, as `descriptor` has them.
        """
        chips = [
            np.asarray(Image.fromarray(aligned).resize((_CHIP_SIZE, _CHIP_SIZE), Image.Resampling.BOX))
            if landmarks is None
            else dlib.get_face_chip(aligned, _shape(landmarks), _CHIP_SIZE, _CHIP_PADDING)
            for aligned, landmarks in faces
        ]
        return np.array(self._recogniser.compute_face_descriptor(chips))

    def landmarks(self, aligned: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Place the landmarks of an aligned face, which is not detected again either.

        Args:
            aligned: (512, 512, 3) uint8 RGB.

        Returns:
            (68, 2) float64, x before y, in pixel-index coordinates of the crop.
        """
        return np.array([(point.x, point.y) for point in self._aligned_shape(aligned).parts()], np.float64)

    def _aligned_shape(self, aligned: NDArray[np.uint8]) -> Any:
        if aligned.shape != (CROP_SIZE, CROP_SIZE, 3):
            raise ValueError(f"an aligned face is ({CROP_SIZE}, {CROP_SIZE}, 3), not {aligned.shape}")
        return self._predictor(aligned, dlib.rectangle(*_ALIGNED_BOX))

    @cached_property
    def _recogniser(self) -> Any:
        return _load(dlib.face_recognition_model_v1, installed_model(_RECOGNISER_FILE))

    def _detect_hog(self, photo: NDArray[np.uint8]) -> list[tuple[Box, float]]:
        grey = Image.fromarray(photo).convert("L")  # as many faces as in colour, in two thirds of the time
        scale = max(_HOG_MIN_SCALE, min(_MAX_SCALE, math.sqrt(_HOG_PIXELS / (grey.width * grey.height))))
        copy = _resize(grey, scale)
        rectangles, scores, _ = self._detector.run(np.asarray(copy), 0, 0.0)
        return _boxes(rectangles, scores, grey.width / copy.width, grey.height / copy.height)

    def _detect_cnn(self, photo: NDArray[np.uint8]) -> list[tuple[Box, float]]:
        image = Image.fromarray(photo)
        scale = min(_MAX_SCALE, math.sqrt(_CNN_PIXELS / (image.width * image.height)))
        copy = _resize(image, scale)
        found = self._detector(np.asarray(copy), 0)
        rectangles, scores = [face.rect for face in found], [face.confidence for face in found]
        return _boxes(rectangles, scores, image.width / copy.width, image.height / copy.height)

    def _landmarks(self, photo: NDArray[np.uint8], box: Box) -> NDArray[np.float64]:
        """Predict on a copy of the face's surroundings, brought to one size for every face."""
        height, width = photo.shape[:2]
        edge = box[2] - box[0]
        margin = _PATCH_MARGIN * edge
        left, top = max(0, math.floor(box[0] - margin)), max(0, math.floor(box[1] - margin))
        right, bottom = min(width, math.ceil(box[2] + margin)), min(height, math.ceil(box[3] + margin))
        patch = part_of(photo, left, top, right, bottom)
        copy = _resize(patch, _LANDMARK_FACE_PX / edge)
        scale = np.array([copy.width / patch.width, copy.height / patch.height])
        low, high = (np.rint((np.array(corner) - (left, top)) * scale).astype(int) for corner in (box[:2], box[2:]))
        shape = self._predictor(np.asarray(copy), dlib.rectangle(*map(int, low), *map(int, high - 1)))
        points = np.array([(point.x, point.y) for point in shape.parts()])
        landmarks: NDArray[np.float64] = (points + 0.5) / scale - 0.5 + (left, top)
        return landmarks


def finder(detector: Detector = "hog", landmarks_model: str | PathLike[str] | None = None) -> FaceFinder:
    """Get the calling thread's own `FaceFinder`, built at its first call.

    The landmark predictor, nearly all of a finder's 100 MB, is shared by all threads.
    """
    if not hasattr(_of_thread, "finders"):
        _of_thread.finders = {}
    finders: dict[tuple[Detector, str | None], FaceFinder] = _of_thread.finders
    key = detector, None if landmarks_model is None else str(landmarks_model)
    if key not in finders:
        finders[key] = FaceFinder(detector, landmarks_model)
    return finders[key]


def _shape(landmarks: NDArray[np.float64]) -> Any:
    """(68, 2) landmarks as dlib has them: whole pixels."""
    points = [dlib.point(int(x), int(y)) for x, y in np.rint(landmarks)]
    return dlib.full_object_detection(dlib.rectangle(*_ALIGNED_BOX), points)


def _resize(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _boxes(rectangles: Any, scores: Any, per_x: float, per_y: float) -> list[tuple[Box, float]]:
    """Bring dlib's rectangles, whose right and bottom pixels belong to them, into photo pixels."""
    return [
        ((r.left() * per_x, r.top() * per_y, (r.right() + 1) * per_x, (r.bottom() + 1) * per_y), float(score))
        for r, score in zip(rectangles, scores, strict=True)
    ]


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
