"""Face recognisers: whose face is in an aligned crop, as a point in a space where near means the same person.

dlib's is built in. Any other comes as an ONNX file and is fed by the convention of ArcFace and its successors
(`insightface`): the face brought to five points of a template by a similarity transform, RGB. Distances are Euclidean
for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard.scoring import SAME_PERSON_BELOW
from visard_errors import CheckpointError
from visard_evaluation.five_points import place_five_points
from visard_evaluation.onnx_models import digest, load_session, run_session

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A picture that a recogniser looks at.

    Attributes:
        aligned: (512, 512, 3) uint8 RGB.
        landmarks: (68, 2) in its pixels: the recogniser cuts the face out by them, as it was trained. None shows it
            the whole crop instead, with hair, ears and neck.
    """

    aligned: NDArray[np.uint8]
    landmarks: NDArray[np.float64] | None


class Recogniser(Protocol):
    """Describes faces; the Euclidean distance of two descriptors says whether they are one person's."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def threshold(self) -> float:
        """Distance below which two faces count as the same person's."""

    def describe(self, views: Sequence[View]) -> NDArray[np.float64]:
        """Describe pictures: N of them → (N, D) float64."""

    def provenance(self) -> dict[str, Any]:
        """What a report says about the recogniser itself, ready for JSON."""


class DlibRecogniser:
    """dlib's ResNet: 128 dimensions, the same person below 0.6."""

    name = "dlib"
    threshold = SAME_PERSON_BELOW

    def describe(self, views: Sequence[View]) -> NDArray[np.float64]:
        """Describe pictures."""
        from visard_preprocess.align import finder

        return finder().descriptors([(view.aligned, view.landmarks) for view in views])

    def provenance(self) -> dict[str, Any]:
        """Threshold."""
        return {"threshold": self.threshold}


class OnnxRecogniser:
    """A recogniser in an ONNX file.

    The model has one image input, (N, 3, S, S) or (N, S, S, 3), RGB: float32 takes (pixel − 127.5) / 127.5, that is
    −1..1, uint8 takes 0..255; a model trained on BGR needs the exchange in its graph. Its first output is (N, D);
    descriptors are brought to length 1, so that distances lie in 0..2 and distance² = 2 − 2·cosine.

    Args:
        name: what reports call it.
        file: the model.
        input_size: S.
        threshold: distance below which two faces count as the same person's; from the model's own authors.
        raw: float32 takes 0..255 too: the graph scales by itself.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is not a model of that form.
    """

    def __init__(self, name: str, file: Path, *, input_size: int, threshold: float, raw: bool = False) -> None:
        self.name = name
        self.threshold = threshold
        self.input_size = input_size
        self.raw = raw
        self._file = file
        self._session = load_session(file, "the recogniser")
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

    def describe(self, views: Sequence[View]) -> NDArray[np.float64]:
        """Describe pictures.

        Raises:
            CheckpointError: the model fails, or does not answer with a descriptor for each.
        """
        images = np.stack([self._picture(view) for view in views])
        tensor = images.astype(self._dtype)
        if self._dtype is np.float32 and not self.raw:
            tensor = tensor / np.float32(127.5) - 1
        if self._channels_first:
            tensor = np.ascontiguousarray(tensor.transpose(0, 3, 1, 2))
        # Many published files were written for one picture at a time.
        batches = np.split(tensor, len(tensor)) if self._input.shape[0] == 1 else [tensor]
        what = f"the recogniser '{self._file}'"
        output = np.concatenate(
            [np.asarray(run_session(self._session, {self._input.name: batch}, what)[0]) for batch in batches]
        )
        lengths = np.linalg.norm(output.reshape(len(output), -1), axis=1, keepdims=True).astype(np.float64)
        if output.ndim != 2 or len(output) != len(views) or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise CheckpointError(
                f"{what} does not answer with a descriptor for each picture (N, D): {output.shape}, lengths "
                f"{lengths.min():g} to {lengths.max():g}"
            )
        descriptors: NDArray[np.float64] = output.astype(np.float64) / lengths
        return descriptors

    def provenance(self) -> dict[str, Any]:
        """Threshold, input and the file's digest."""
        return {
            "threshold": self.threshold,
            "input_size": self.input_size,
            "raw": self.raw,
            "sha256": self._sha256,
        }

    def _picture(self, view: View) -> NDArray[np.uint8]:
        if view.landmarks is not None:
            return place_five_points(view.aligned, view.landmarks, self.input_size)
        size = self.input_size, self.input_size
        return np.asarray(Image.fromarray(view.aligned).resize(size, Image.Resampling.BOX))

    @cached_property
    def _sha256(self) -> str:
        return digest(self._file)


def parse_recogniser(text: str) -> tuple[str, Path, int, float, bool]:
    """Read ``NAME=FILE:SIZE:THRESHOLD`` with ``:raw`` or without, such as ``arcface=w600k_r50.onnx:112:1.1``.

    Returns:
        Name, file, input size in pixels, distance threshold, whether pixels go in as they are.

    Raises:
        ValueError: it reads differently.
    """
    name, equals, rest = text.partition("=")
    raw = rest.endswith(":raw")
    try:
        file, size_text, threshold_text = rest.removesuffix(":raw").rsplit(":", 2)
        size, threshold = int(size_text), float(threshold_text)
    except ValueError:
        file, size, threshold = "", 0, 0.0
    if not (equals and name.isidentifier() and file and 16 <= size <= 512 and 0 < threshold < 2):
        raise ValueError(
            f"a recogniser is NAME=FILE.onnx:SIZE:THRESHOLD, such as arcface=w600k_r50.onnx:112:1.1, not {text!r}: "
            "SIZE is the edge of its input in pixels (16..512), THRESHOLD a distance of unit vectors (0..2); a model "
            "that scales 0..255 by itself takes :raw after that"
        )
    return name, Path(file), size, threshold, raw


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
        *(
            OnnxRecogniser(name, file, input_size=size, threshold=limit, raw=raw)
            for name, file, size, limit, raw in parsed
        ),
    )


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
