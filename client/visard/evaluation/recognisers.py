"""Face recognisers: whose face is in an aligned crop, as a point in a space where near means the same person.

dlib's is built in. Any other comes as an ONNX file and is fed by the convention of ArcFace and its successors
(`insightface`): the face brought to five points of a template by a similarity transform, RGB, −1..1. Distances are
Euclidean for all of them. It knows nothing about what is compared with what.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard.scoring import SAME_PERSON_BELOW
from visard_errors import CheckpointError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where eyes, nose and the corners of the mouth lie in an ArcFace input of 112 pixels (Deng et al., 2019; the template
# of insightface's `face_align.py`), in pixel-index coordinates. Other input sizes scale it.
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_TEMPLATE_SIZE = 112
_NOSE_TIP, _MOUTH_LEFT, _MOUTH_RIGHT = 30, 48, 54
_OVERSAMPLING = 4  # sampled on a finer grid, then averaged: a face in a crop of 512 pixels is four times the template's


class Recogniser(Protocol):
    """Describes faces; the Euclidean distance of two descriptors says whether they are one person's."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def threshold(self) -> float:
        """Distance below which two faces count as the same person's."""

    def describe(self, aligned: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Describe a face: (512, 512, 3) uint8 RGB and its (68, 2) landmarks in crop pixels → (D,) float64."""

    def passport(self) -> dict[str, Any]:
        """What a report says about the recogniser itself, ready for JSON."""


class DlibRecogniser:
    """dlib's ResNet: 128 dimensions, the same person below 0.6."""

    name = "dlib"
    threshold = SAME_PERSON_BELOW

    def describe(self, aligned: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Describe a face; dlib places its landmarks itself."""
        from visard_preprocess.align import finder

        return finder().descriptor(aligned)

    def passport(self) -> dict[str, Any]:
        """Threshold."""
        return {"threshold": self.threshold}


class OnnxRecogniser:
    """A recogniser in an ONNX file.

    The model has one image input, (N, 3, S, S) or (N, S, S, 3): float32 takes (pixel − 127.5) / 127.5, that is −1..1,
    uint8 takes 0..255; the channels are RGB (a model trained on BGR needs the exchange in its graph). Its first output
    is (N, D); descriptors are brought to length 1, so that distances lie in 0..2 and
    distance² = 2 − 2·cosine.

    Args:
        name: what reports call it.
        file: the model.
        input_size: S.
        threshold: distance below which two faces count as the same person's; from the model's own authors.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is not a model of that form.
    """

    def __init__(self, name: str, file: Path, *, input_size: int, threshold: float) -> None:
        self.name = name
        self.threshold = threshold
        self.input_size = input_size
        self._file = file
        self._session = _load(file)
        try:
            (self._input,) = self._session.get_inputs()
            self._channels_first = _channels_first(self._input.shape, input_size)
            self._dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}[self._input.type]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"the recogniser '{file}' does not take one image of {input_size}×{input_size}: it has "
                + ", ".join(f"'{each.name}' {each.type} {each.shape}" for each in self._session.get_inputs())
                + "; float32 or uint8, (N, 3, S, S) or (N, S, S, 3) is needed"
            ) from None

    def describe(self, aligned: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Describe a face.

        Raises:
            CheckpointError: the model fails, or does not answer with one descriptor.
        """
        image = place_five_points(aligned, landmarks, self.input_size)
        tensor = image.astype(np.float32) / 127.5 - 1 if self._dtype is np.float32 else image
        if self._channels_first:
            tensor = tensor.transpose(2, 0, 1)
        try:
            output = np.asarray(self._session.run(None, {self._input.name: np.ascontiguousarray(tensor)[None]})[0])
        except Exception as error:  # onnxruntime's errors have no common root
            raise CheckpointError(f"the recogniser '{self._file}' failed: {error}") from error
        length = float(np.linalg.norm(output)) if output.ndim == 2 and len(output) == 1 else math.nan
        if not (math.isfinite(length) and length > 0):
            raise CheckpointError(
                f"the recogniser '{self._file}' does not answer with a descriptor (1, D): {output.shape}, length "
                f"{length:g}"
            )
        descriptor: NDArray[np.float64] = output[0].astype(np.float64) / length
        return descriptor

    def passport(self) -> dict[str, Any]:
        """Threshold, input size and the file's digest."""
        return {"threshold": self.threshold, "input_size": self.input_size, "sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        with self._file.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.hexdigest()


def parse_recogniser(text: str) -> tuple[str, Path, int, float]:
    """Read ``NAME=FILE:SIZE:THRESHOLD``, such as ``arcface=w600k_r50.onnx:112:1.1``.

    Returns:
        Name, file, input size in pixels, distance threshold.

    Raises:
        ValueError: it reads differently.
    """
    name, equals, rest = text.partition("=")
    try:
        file, size_text, threshold_text = rest.rsplit(":", 2)
        size, threshold = int(size_text), float(threshold_text)
    except ValueError:
        file, size, threshold = "", 0, 0.0
    if not (equals and name.isidentifier() and file and 16 <= size <= 512 and 0 < threshold < 2):
        raise ValueError(
            f"a recogniser is NAME=FILE.onnx:SIZE:THRESHOLD, such as arcface=w600k_r50.onnx:112:1.1, not {text!r}: "
            "SIZE is the edge of its input in pixels (16..512), THRESHOLD a distance of unit vectors (0..2)"
        )
    return name, Path(file), size, threshold


def build_recognisers(texts: Sequence[str]) -> tuple[Recogniser, ...]:
    """Build dlib's recogniser and those that `parse_recogniser` reads.

    Raises:
        ValueError: a text reads differently, or two recognisers have one name.
        MissingExtra: onnxruntime is not installed.
        CheckpointError: a model cannot be used.
    """
    parsed = [parse_recogniser(text) for text in texts]
    names = [DlibRecogniser.name, *(name for name, *_ in parsed)]
    if len(set(names)) < len(names):
        raise ValueError(f"every recogniser needs a name of its own, these are {', '.join(names)}")
    return (
        DlibRecogniser(),
        *(OnnxRecogniser(name, file, input_size=size, threshold=limit) for name, file, size, limit in parsed),
    )


def place_five_points(
    aligned: NDArray[np.uint8], landmarks: NDArray[np.float64], size: int = _TEMPLATE_SIZE
) -> NDArray[np.uint8]:
    """Bring a face to where ArcFace expects it.

    Args:
        aligned: (H, W, 3) uint8 RGB.
        landmarks: (68, 2) in its pixels.
        size: edge of the result.

    Returns:
        (size, size, 3) uint8 RGB; black outside `aligned`.
    """
    template = (_TEMPLATE + 0.5) * (size / _TEMPLATE_SIZE) - 0.5
    # The fit is made in the template's space, as the models were trained; Pillow wants the way back, and counts from a
    # pixel's corner.
    turn, shift = similarity(five_points(landmarks), template)
    back, origin = 1 / turn, -shift / turn
    a, b, x0, y0 = back.real, back.imag, origin.real, origin.imag
    per_pixel = 1 / _OVERSAMPLING
    matrix = (
        a * per_pixel,
        -b * per_pixel,
        x0 - 0.5 * (a - b) + 0.5,
        b * per_pixel,
        a * per_pixel,
        y0 - 0.5 * (a + b) + 0.5,
    )
    fine = Image.fromarray(aligned).transform(
        (size * _OVERSAMPLING, size * _OVERSAMPLING), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(fine.resize((size, size), Image.Resampling.BOX))


def five_points(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce (68, 2) landmarks to (5, 2): both eyes, tip of the nose, both corners of the mouth."""
    return np.stack(
        [
            landmarks[36:42].mean(axis=0),
            landmarks[42:48].mean(axis=0),
            landmarks[_NOSE_TIP],
            landmarks[_MOUTH_LEFT],
            landmarks[_MOUTH_RIGHT],
        ]
    )


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[complex, complex]:
    """Find the similarity transform that brings points nearest to others, by least squares.

    Returns:
        Turn and shift: with points as complex numbers, z goes to turn·z + shift.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    from_mean = z - z.mean()
    turn = np.vdot(from_mean, w - w.mean()) / np.vdot(from_mean, from_mean)
    return complex(turn), complex(w.mean() - turn * z.mean())


def _channels_first(shape: Sequence[Any], size: int) -> bool:
    """Whether an input is (N, 3, S, S); a size may be left open by a name. ValueError for anything else."""

    def fits(*wanted: int) -> bool:
        sizes = zip(shape[1:], wanted, strict=True)
        return all(given == want or not isinstance(given, int) for given, want in sizes)

    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError
    for first, wanted in ((True, (3, size, size)), (False, (size, size, 3))):
        if fits(*wanted):
            return first
    raise ValueError


def _load(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("serve", "a recogniser in an ONNX file") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # photos are measured on all cores already
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common root
        raise CheckpointError(f"cannot load the recogniser '{file}': {error}") from None
