"""The two halves of one photo that need no server: `prepare` before the swap, `finish` after it.

    photo ─► prepare: decode, find faces, align ─► (swap, by a client) ─► finish: score, blend ─► Result

Pure functions of their arguments, run by both clients on worker threads: Pillow, dlib and most of numpy release the
GIL. It knows nothing about connections.

A photo fails closed: where one of the chosen faces cannot be anonymised, an error is raised and no photo comes back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visard import scoring
from visard.result import ApparentGender, FaceResult, Gender, Result
from visard.wire import GENDERS, Direction, Swap
from visard_errors import FaceTooSmall, NoFace, UncertainGender

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from visard_preprocess.align import Face

_TARGETS: dict[Direction, Gender] = {"to_male": "male", "to_female": "female"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do with a photo.

    Attributes:
        faces: `all`, or the `largest` alone, which leaves the others visible.
        direction: swap each face to the `opposite` of its apparent gender, or every face `to_male` or `to_female`
            without asking for its apparent gender first.
        min_confidence: 0.5..1. A face whose apparent gender is less certain is refused (`UncertainGender`) rather
            than guessed. It has no meaning where the direction is given.
        output: the whole `photo` with the faces blended in, or the aligned `crops` alone.
        identity: also measure how far the face descriptors lie apart (some tens of milliseconds per face).
        detector: dlib's `hog` (frontal faces, fast) or `cnn` (more poses, many times slower without a GPU).
        landmarks_model: path of another 68-point predictor (`.dat` or `.dat.bz2`) than the installed one.
    """

    faces: Literal["all", "largest"] = "all"
    direction: Direction = "opposite"
    min_confidence: float = 0.5
    output: Literal["photo", "crops"] = "photo"
    identity: bool = False
    detector: Literal["hog", "cnn"] = "hog"
    landmarks_model: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        for name, allowed in (
            ("faces", ("all", "largest")),
            ("direction", get_args(Direction)),
            ("output", ("photo", "crops")),
            ("detector", ("hog", "cnn")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not 0.5 <= self.min_confidence <= 1.0:
            raise ValueError(f"min_confidence must lie in 0.5..1, not {self.min_confidence}")


class Stopwatch:
    """Adds up wall seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A photo that is ready for the server.

    Attributes:
        photo: (H, W, 3) uint8 RGB.
        faces: the chosen faces, largest first.
        faces_found: how many faces there are in all.
        aligned: (N, 512, 512, 3) uint8 RGB, in the order of `faces`.
        seconds: wall time of `decode`, `find` and `align`.
    """

    photo: NDArray[np.uint8] = field(repr=False)
    faces: tuple[Face, ...]
    faces_found: int
    aligned: NDArray[np.uint8] = field(repr=False)
    seconds: dict[str, float]


def prepare(source: Any, options: Options) -> Prepared:
    """Decode a photo, find its faces and align them.

    Args:
        source: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
        options: which faces, and how to find them.

    Raises:
        PhotoError: the photo cannot be read (see `visard_preprocess.photo.read_photo`), has no face (`NoFace`), or
            one of the chosen faces is too small to be anonymised (`FaceTooSmall`).
    """
    from visard_preprocess.align import MIN_FACE_PX, finder
    from visard_preprocess.geometry import crop
    from visard_preprocess.photo import read_photo

    watch = Stopwatch()
    photo = read_photo(source)
    watch.lap("decode")
    found = finder(options.detector, options.landmarks_model).find(photo)
    watch.lap("find")
    if not found:
        raise NoFace("no face was found: the photo needs an upright face that looks roughly at the camera")
    chosen = found if options.faces == "all" else found[:1]
    small = [face for face in chosen if face.too_small]
    if small:
        sizes = ", ".join(f"{face.size_px:.0f} px at {_place(face.box)}" for face in small)
        raise FaceTooSmall(
            f"{len(small)} of {len(found)} faces too small to be anonymised ({sizes}; at least {MIN_FACE_PX} px "
            "needed), so the photo is withheld: use a larger original or crop these people away"
        )
    aligned = np.stack([crop(photo, face.quad) for face in chosen])
    watch.lap("align")
    return Prepared(photo=photo, faces=chosen, faces_found=len(found), aligned=aligned, seconds=watch.seconds)


def finish(prepared: Prepared, swaps: Sequence[Swap], options: Options, *, swap_seconds: float = 0.0) -> Result:
    """Score the swapped faces and blend them into the photo.

    Args:
        prepared: what `prepare` returned.
        swaps: the server's answers in the order of `prepared.faces`.
        options: the same as for `prepare`.
        swap_seconds: how long the server took, for the report.

    Raises:
        UncertainGender: a face's apparent gender is less certain than `options.min_confidence`.
    """
    from visard_preprocess.compose import FaceSwap, compose

    for face, swap in zip(prepared.faces, swaps, strict=True):
        if swap.gender is not None and swap.gender.max() < options.min_confidence:
            raise UncertainGender(
                f"the apparent gender of the face at {_place(face.box)} is only {swap.gender.max():.0%} certain "
                f"(at least {options.min_confidence:.0%} wanted), so the photo is withheld: choose the direction "
                "yourself, or lower min_confidence"
            )
    watch = Stopwatch()
    faces = tuple(
        score_face(face, aligned, swap, options)
        for face, aligned, swap in zip(prepared.faces, prepared.aligned, swaps, strict=True)
    )
    watch.lap("score")
    photo = None
    if options.output == "photo":
        photo = compose(
            prepared.photo,
            [FaceSwap(quad=face.quad, aligned=face.aligned, swapped=face.swapped) for face in faces],
        )
        watch.lap("blend")
    return Result(
        photo=photo,
        faces=faces,
        faces_found=prepared.faces_found,
        seconds={**prepared.seconds, "swap": swap_seconds, **watch.seconds},
    )


def score_face(face: Face, aligned: NDArray[np.uint8], swap: Swap, options: Options) -> FaceResult:
    """Say how well one swap hides its face.

    Args:
        face: where it lies in the photo.
        aligned: (512, 512, 3) uint8 RGB, the original face.
        swap: the server's answer.
        options: the direction that the server was asked for, and whether to measure identity.
    """
    gender = None if swap.gender is None else ApparentGender.from_probabilities(swap.gender)
    return FaceResult(
        box=face.box,
        quad=face.quad,
        aligned=aligned,
        swapped=swap.swapped,
        target=_TARGETS[options.direction] if gender is None else _opposite(gender.label),
        gender=gender,
        swapped_gender=ApparentGender.from_probabilities(swap.swapped_gender),
        similarity_percent=scoring.similarity_percent(aligned, swap.swapped),
        pixel_cosine=scoring.pixel_cosine(aligned, swap.swapped),
        identity_distance=_identity(aligned, swap.swapped, options) if options.identity else None,
    )


def _identity(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8], options: Options) -> float:
    from visard_preprocess.align import finder

    describe = finder(options.detector, options.landmarks_model).descriptor
    return scoring.identity_distance(describe(aligned), describe(swapped))


def _opposite(gender: Gender) -> Gender:
    return "male" if gender == GENDERS[0] else "female"


def _place(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box
    return f"({left:.0f}, {top:.0f})–({right:.0f}, {bottom:.0f})"
