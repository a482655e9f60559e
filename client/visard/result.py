"""What a caller gets back: the photo without the faces that were in it, and one report per face.

Values only. Pixels leave a result through `save`, and only to the path that the caller names, or as the bytes of
`encode`; `to_dict` has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from visard.scoring import SAME_PERSON_BELOW
from visard.wire import GENDERS

if TYPE_CHECKING:
    from os import PathLike

    from visard_preprocess.geometry import Quad
    from visard_preprocess.photo import Format, SourceType

ImageFormat = Literal["jpeg", "png", "webp"]
Gender = Literal["female", "male"]


@dataclass(frozen=True, kw_only=True)
class ApparentGender:
    """The classifier's opinion of a picture, not a statement about a person."""

    label: Gender
    confidence: float  # 0.5..1, the softmax probability of the label

    @classmethod
    def from_probabilities(cls, probabilities: NDArray[np.float32]) -> ApparentGender:
        """Read (2,) probabilities in the order (female, male)."""
        index = int(np.argmax(probabilities))
        label: Gender = "male" if GENDERS[index] == "male" else "female"
        return cls(label=label, confidence=float(probabilities[index]))


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceResult:
    """One anonymised face.

    Attributes:
        box: (left, top, right, bottom) of the detected face in photo pixels.
        quad: where the aligned crop lies in the photo.
        aligned: (512, 512, 3) uint8 RGB, the original face, FFHQ-aligned.
        swapped: (512, 512, 3) uint8 RGB, the generated face.
        target: the apparent gender that the generator was asked for.
        gender: apparent gender before; None where the caller gave the direction, which skips the first check, and the
            face was not looked at earlier.
        swapped_gender: apparent gender of the generated face, by the same classifier.
        similarity_percent: published formula, see `visard.scoring.similarity`.
        pixel_cosine: −1..1, 1 for an unchanged face.
        identity_distance: distance of the face descriptors; None where it was not asked for.
    """

    box: tuple[float, float, float, float]
    quad: Quad
    aligned: NDArray[np.uint8] = field(repr=False)
    swapped: NDArray[np.uint8] = field(repr=False)
    target: Gender
    gender: ApparentGender | None
    swapped_gender: ApparentGender
    similarity_percent: float
    pixel_cosine: float
    identity_distance: float | None

    @property
    def flipped(self) -> bool:
        """Whether the classifier sees the intended gender in the result."""
        return self.swapped_gender.label == self.target

    @property
    def same_person(self) -> bool | None:
        """Whether dlib's recogniser would still match the result with the original; None where it was not asked."""
        return None if self.identity_distance is None else self.identity_distance < SAME_PERSON_BELOW

    def save(self, path: str | PathLike[str]) -> None:
        """Write the generated crop as PNG, JPEG or WebP, marked as made by a trained algorithm, no other metadata."""
        from visard_preprocess.photo import write_photo

        write_photo(self.swapped, path, source_type="trainedAlgorithmicMedia")

    def encode(self, format: ImageFormat = "png") -> bytes:
        """Write the generated crop as the bytes of a file, otherwise as `save` does."""
        return encode(self.swapped, format, "trainedAlgorithmicMedia")

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels, ready for JSON."""
        return {
            "box": [round(float(edge), 1) for edge in self.box],
            "target": self.target,
            "gender": _gender_dict(self.gender),
            "swapped_gender": _gender_dict(self.swapped_gender),
            "flipped": self.flipped,
            "similarity_percent": round(self.similarity_percent, 3),
            "pixel_cosine": round(self.pixel_cosine, 5),
            "identity_distance": None if self.identity_distance is None else round(self.identity_distance, 4),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One anonymised photo.

    Attributes:
        photo: (H, W, 3) uint8 RGB, the whole photo with the generated faces; None where crops alone were asked for.
        faces: the anonymised faces, largest first.
        faces_found: how many faces the detector saw. More than `len(faces)` only where the caller asked for the
            largest alone or left faces alone: the others are still visible in `photo`.
        seconds: wall time per stage (`decode`, `find`, `align`, `swap`, `score`, `blend`).
    """

    photo: NDArray[np.uint8] | None = field(repr=False)
    faces: tuple[FaceResult, ...]
    faces_found: int
    seconds: dict[str, float]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the photo as PNG, JPEG or WebP, by the path's suffix.

        No metadata of the original survives; the file says, as IPTC `digitalSourceType`, that it is a composite with
        algorithmically generated parts, unless every face was left alone.

        Raises:
            ValueError: crops alone were asked for; save `faces[i]` instead.
            UnsupportedFormat: another suffix.
            OutputError: the path cannot be written.

        Example:
            >>> client.anonymize("photo.jpg").save("anonymised.webp")
        """
        from visard_preprocess.photo import write_photo

        write_photo(self._blended(), path, source_type=self._source_type())

    def encode(self, format: ImageFormat) -> bytes:
        """Write the photo as the bytes of a file, otherwise as `save` does.

        Example:
            >>> data = client.anonymize("photo.jpg").encode("webp")
            >>> data[:4]
            b'RIFF'
        """
        return encode(self._blended(), format, self._source_type())

    def _blended(self) -> NDArray[np.uint8]:
        if self.photo is None:
            raise ValueError("there is no blended photo, crops alone were asked for: save result.faces[i] instead")
        return self.photo

    def _source_type(self) -> SourceType | None:
        return "compositeWithTrainedAlgorithmicMedia" if self.faces else None

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels, ready for JSON."""
        return {
            "faces_found": self.faces_found,
            "faces": [face.to_dict() for face in self.faces],
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of one photo of many: a result, or the error that kept it from one.

    Attributes:
        index: position in the sequence of photos, from 0.
        source: the photo as it was given.
        result: None where there was an error.
        error: what the same call for this photo alone would have raised: a `VisardError`, unless Visard has a defect.
    """

    index: int
    source: Any = field(repr=False)
    result: Result | None = None
    error: Exception | None = None


def encode(image: NDArray[np.uint8], format: ImageFormat, source_type: SourceType | None) -> bytes:
    """Write (H, W, 3) uint8 RGB as the bytes of a file; see `visard_preprocess.photo.encode_photo`."""
    from visard_preprocess.photo import encode_photo

    name: Format = "JPEG" if format == "jpeg" else "PNG" if format == "png" else "WEBP"
    return encode_photo(image, name, source_type=source_type)


def _gender_dict(gender: ApparentGender | None) -> dict[str, Any] | None:
    return None if gender is None else {"label": gender.label, "confidence": round(gender.confidence, 4)}
