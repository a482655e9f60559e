"""What a caller gets back: the photo without the faces that were in it, and one report per face.

Values only. Pixels leave a result through `save`, and only to the path that the caller names, as the bytes of `encode`,
or where a notebook shows it; `to_dict` has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from visard.policy import FaceOutcome, Reason
from visard.scoring import SAME_PERSON_BELOW
from visard.wire import GENDERS

if TYPE_CHECKING:
    from os import PathLike

    from visard_preprocess.exif import Exif
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
    """One face and what was generated in its place.

    Attributes:
        index: which of the photo's faces it is, from 0: the largest first, those drawn by hand last.
        box: (left, top, right, bottom) in photo pixels, as it was detected or drawn.
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
        reason: why the swap is not good enough, where the caller wants to see such faces too; None where it is.
    """

    index: int
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
    reason: Reason | None = None

    @property
    def outcome(self) -> FaceOutcome:
        """`swapped`, or `visible` where the swap is not good enough and was wanted all the same."""
        return "swapped" if self.reason is None else "visible"

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
            "index": self.index,
            "box": _box_list(self.box),
            "outcome": self.outcome,
            "reason": self.reason,
            "target": self.target,
            "gender": _gender_dict(self.gender),
            "swapped_gender": _gender_dict(self.swapped_gender),
            "flipped": self.flipped,
            "similarity_percent": round(self.similarity_percent, 3),
            "pixel_cosine": round(self.pixel_cosine, 5),
            "identity_distance": None if self.identity_distance is None else round(self.identity_distance, 4),
        }


@dataclass(frozen=True, kw_only=True)
class UnswappedFace:
    """One face in whose place nothing was generated.

    Attributes:
        index: which of the photo's faces it is, from 0: the largest first, those drawn by hand last.
        box: (left, top, right, bottom) in photo pixels, as it was detected or drawn.
        outcome: `covered`; or `visible`, still there as it was.
        reason: why it was not swapped.
    """

    index: int
    box: tuple[float, float, float, float]
    outcome: FaceOutcome
    reason: Reason

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {"index": self.index, "box": _box_list(self.box), "outcome": self.outcome, "reason": self.reason}


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One anonymised photo.

    Says what became of every face that the detector saw, or a person drew. Whether that is everybody nobody knows.

    Attributes:
        photo: (H, W, 3) uint8 RGB, the whole photo with the generated faces and the covers; None where crops alone were
            asked for.
        faces: those in whose place a generated face stands, largest first.
        others: those that were covered, or left visible as they were, largest first.
        seconds: wall time per stage (`decode`, `find`, `align`, `swap`, `score`, `blend`).
        exif: what `Options.keep` named of the original's metadata, and the file will have: tag → a whole number, a
            fraction or a date.
    """

    photo: NDArray[np.uint8] | None = field(repr=False)
    faces: tuple[FaceResult, ...]
    others: tuple[UnswappedFace, ...] = ()
    seconds: dict[str, float]
    exif: Exif = field(default_factory=dict, repr=False)

    @property
    def faces_found(self) -> int:
        """How many faces there are: those that the detector saw, and those that were drawn by hand."""
        return len(self.faces) + len(self.others)

    @property
    def all_faces(self) -> tuple[FaceResult | UnswappedFace, ...]:
        """Every face that the detector saw, the largest first, and then those that were drawn by hand."""
        every: list[FaceResult | UnswappedFace] = [*self.faces, *self.others]
        return tuple(sorted(every, key=lambda face: face.index))

    @property
    def source_type(self) -> SourceType | None:
        """How a file of the photo says that it was made, in IPTC's words; None where no face was generated."""
        return "compositeWithTrainedAlgorithmicMedia" if self.faces else None

    def count(self, outcome: FaceOutcome) -> int:
        """How many faces ended so."""
        return sum(face.outcome == outcome for face in self.all_faces)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the photo as PNG, JPEG or WebP, by the path's suffix.

        No metadata of the original survives, but for what `Options.keep` names. The file says, as IPTC
        `digitalSourceType`, that it is a composite with algorithmically generated parts, unless no face was swapped.

        Raises:
            ValueError: crops alone were asked for; save `faces[i]` instead.
            UnsupportedFormat: another suffix.
            OutputError: the path cannot be written.

        Example:
            >>> client.anonymize("photo.jpg").save("anonymised.webp")
        """
        from visard_preprocess.photo import write_photo

        write_photo(self._blended(), path, source_type=self.source_type, exif=self.exif)

    def encode(self, format: ImageFormat) -> bytes:
        """Write the photo as the bytes of a file, otherwise as `save` does.

        Example:
            >>> data = client.anonymize("photo.jpg").encode("webp")
            >>> data[:4]
            b'RIFF'
        """
        return encode(self._blended(), format, self.source_type, self.exif)

    def _repr_html_(self) -> str:
        """Show the anonymised photo, reduced, and the scores; see `visard.display`."""
        from visard.display import html

        return html(self)

    def _repr_jpeg_(self) -> bytes | None:
        """Show the anonymised photo, reduced, where a notebook is exported to something else than HTML."""
        from visard.display import jpeg

        return jpeg(self)

    def _blended(self) -> NDArray[np.uint8]:
        if self.photo is None:
            raise ValueError("there is no blended photo, crops alone were asked for: save result.faces[i] instead")
        return self.photo

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels, ready for JSON."""
        return {
            "faces_found": self.faces_found,
            "faces": [face.to_dict() for face in self.faces],
            "others": [face.to_dict() for face in self.others],
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Anonymized:
    """One photo of many, and its result.

    Attributes:
        index: position in the sequence of photos, from 0.
        source: the photo as it was given.
        result: what the same call for this photo alone would have returned.
        error: None: what tells it from a `Failed`, to type checkers too.
    """

    index: int
    source: Any = field(repr=False)
    result: Result
    error: None = field(default=None, init=False, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Failed:
    """One photo of many, and what kept it from a result.

    Attributes:
        index: position in the sequence of photos, from 0.
        source: the photo as it was given.
        error: what the same call for this photo alone would have raised: a `VisardError`, unless Visard has a defect.
        result: None: what tells it from an `Anonymized`, to type checkers too.
    """

    index: int
    source: Any = field(repr=False)
    error: Exception
    result: None = field(default=None, init=False, repr=False)


# What became of one photo of many. `isinstance`, `match` and `outcome.error is None` tell which it is.
Outcome: TypeAlias = Anonymized | Failed


def encode(
    image: NDArray[np.uint8], format: ImageFormat, source_type: SourceType | None, exif: Exif | None = None
) -> bytes:
    """Write (H, W, 3) uint8 RGB as the bytes of a file; see `visard_preprocess.photo.encode_photo`."""
    from visard_preprocess.photo import encode_photo

    name: Format = "JPEG" if format == "jpeg" else "PNG" if format == "png" else "WEBP"
    return encode_photo(image, name, source_type=source_type, exif=exif or {})


def _box_list(box: tuple[float, float, float, float]) -> list[float]:
    return [round(float(edge), 1) for edge in box]


def _gender_dict(gender: ApparentGender | None) -> dict[str, Any] | None:
    return None if gender is None else {"label": gender.label, "confidence": round(gender.confidence, 4)}
