"""The two halves of one photo that need no server: `prepare` before the swap, `finish` after it.

    photo ─► find: decode, find faces ─► choose: align ─► (swap, by a client) ─► finish: score, blend ─► Result
             └─────────────── prepare ───────────────┘

Pure functions of their arguments, run by both clients on worker threads: Pillow, dlib and most of numpy release the
GIL. Connections are left to the clients.

A photo fails closed: where one of the chosen faces cannot be anonymised, an error is raised and no photo comes back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from typing_extensions import Doc

from visard import scoring
from visard.declared import check
from visard.personas import draw
from visard.result import ApparentGender, FaceResult, Gender, ImageFormat, Result, encode
from visard.wire import GENDERS, Direction, Swap
from visard_errors import FaceTooSmall, NoFace, UncertainGender
from visard_preprocess import DETECTOR_THRESHOLD, MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from visard_preprocess.align import Face

Choice = Literal["opposite", "to_male", "to_female", "leave"]  # a direction for one face, or that it stays visible

_TARGETS: dict[Direction, Gender] = {"to_male": "male", "to_female": "female"}


# What other options have too, in the same words.
DirectionOption = Annotated[
    Direction, Doc("Swap to the opposite of each face's apparent gender, or all faces one way.")
]
DetectorThreshold = Annotated[
    float,
    Interval(ge=0.3, le=0.95),
    Doc("The score from which on something is a face: lower finds more faces, and more that are none."),
]
Certainty = Annotated[float, Interval(ge=0.5, le=1.0)]
PersonaKey = Annotated[
    str | bytes | None,
    Doc(
        "Secret from which the looks are drawn: the same key gives the same looks, and photos that can be linked. "
        "Drawn anew for each photo without it."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do with a photo.

    Where the direction is given nobody asks for a face's apparent gender first, and `min_confidence` has no meaning.
    A photo with a face that is less certain raises `UncertainGender`.
    """

    faces: Annotated[Literal["all", "largest"], Doc("'largest' leaves every other face visible.")] = "all"
    direction: DirectionOption = "opposite"
    min_confidence: Annotated[Certainty, Doc("Withhold a photo whose apparent gender is less certain than this.")] = 0.5
    output: Annotated[
        Literal["photo", "crops"], Doc("The photo with the faces blended in, or the generated faces alone.")
    ] = "photo"
    identity: Annotated[bool, Doc("Also measure whether a face recogniser would still match.")] = False
    detector_threshold: DetectorThreshold = DETECTOR_THRESHOLD
    landmarks_model: Annotated[
        str | PathLike[str] | None,
        Doc("Path of another 68-point predictor (.dat or .dat.bz2) than the installed one."),
    ] = None
    max_pixels: Annotated[int, Interval(ge=1), Doc("A photo with more is refused before it is decoded.")] = MAX_PIXELS
    persona_key: PersonaKey = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)
        if self.persona_key is not None and not self.persona_key:
            raise ValueError("persona_key must not be empty: everybody's empty key is the same")


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
class Found:
    """The faces in a photo, for callers who choose face by face what becomes of them.

    Attributes:
        photo: (H, W, 3) uint8 RGB, upright.
        faces: all of them, largest first, those that are too small to be anonymised among them.
        genders: what the server sees in each face; None where it is too small or nobody asked.
        seconds: wall time of `decode` and `find`.
        aligned: crops that were made already, to ask for the genders: index of a face → (512, 512, 3) uint8 RGB.
    """

    photo: NDArray[np.uint8] = field(repr=False)
    faces: tuple[Face, ...]
    genders: tuple[ApparentGender | None, ...]
    seconds: dict[str, float]
    aligned: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def encode(self, format: ImageFormat) -> bytes:
        """Write the photo as it was read as the bytes of a file without any metadata."""
        return encode(self.photo, format, None)

    def encode_face(self, index: int, format: ImageFormat = "png") -> bytes:
        """Write one face, aligned to 512×512 pixels, likewise."""
        return encode(self.align(index), format, None)

    def align(self, index: int) -> NDArray[np.uint8]:
        """Cut out one face, where that was not done before: (512, 512, 3) uint8 RGB."""
        from visard_preprocess.geometry import crop

        made = self.aligned.get(index)
        return crop(self.photo, self.faces[index].quad) if made is None else made


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A photo that is ready for the server.

    Attributes:
        photo: (H, W, 3) uint8 RGB.
        faces: the chosen faces, largest first.
        faces_found: how many faces there are in all.
        aligned: (N, 512, 512, 3) uint8 RGB, in the order of `faces`.
        directions: which way each of them goes.
        genders: what is known of each of them before the swap.
        personas: whose look each of them gets; see `visard.personas`.
        seconds: wall time of `decode`, `find` and `align`.
    """

    photo: NDArray[np.uint8] = field(repr=False)
    faces: tuple[Face, ...]
    faces_found: int
    aligned: NDArray[np.uint8] = field(repr=False)
    directions: tuple[Direction, ...]
    genders: tuple[ApparentGender | None, ...]
    personas: tuple[int, ...] = field(repr=False)
    seconds: dict[str, float]


def min_face_px() -> int:
    """Edge of the smallest box, in photo pixels, in which a face can be anonymised; loads dlib."""
    from visard_preprocess.align import MIN_FACE_PX

    return MIN_FACE_PX


def warm_up(options: Options, ready: Callable[[], object] = lambda: None) -> None:
    """Load what the calling thread needs for its first photo.

    Args:
        options: of the photos to come.
        ready: called at the end.
    """
    from visard_preprocess.geometry import CROP_SIZE

    blank = np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    find(blank, options)
    if options.identity:
        identity_distance(blank, blank, options)
    ready()


def find(source: Any, options: Options) -> Found:
    """Decode a photo and find its faces; there may be none.

    Args:
        source: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
        options: how to find them, and what is too large.

    Raises:
        PhotoError: the photo cannot be read; see `visard_preprocess.photo.read_photo`.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.photo import read_photo

    watch = Stopwatch()
    photo = read_photo(source, max_pixels=options.max_pixels)
    watch.lap("decode")
    faces = finder(options.landmarks_model).find(photo, options.detector_threshold)
    watch.lap("find")
    return Found(photo=photo, faces=faces, genders=(None,) * len(faces), seconds=watch.seconds)


def choose(found: Found, choices: Sequence[Choice], *, persona_key: str | bytes | None = None) -> Prepared:
    """Align the faces that are to be swapped, and draw their personas.

    Args:
        found: what `find` returned.
        choices: one for each of its faces, in their order.
        persona_key: see `Options`. A face's persona does not depend on what is chosen for the others.

    Raises:
        NoFace: there is none to choose from.
        FaceTooSmall: one of those that are to be swapped.
    """
    from visard_preprocess.align import MIN_FACE_PX
    from visard_preprocess.geometry import CROP_SIZE

    for choice in choices:
        if choice not in get_args(Choice):
            raise ValueError(f"a choice is one of {', '.join(get_args(Choice))}, not {choice!r}")
    if len(choices) != len(found.faces):
        raise ValueError(f"there are {len(found.faces)} faces, not {len(choices)}")
    if not found.faces:
        raise NoFace("no face was found: use a photo that shows one more clearly, or a lower detector_threshold")
    watch = Stopwatch()
    chosen = [index for index, choice in enumerate(choices) if choice != "leave"]
    faces = tuple(found.faces[index] for index in chosen)
    small = [face for face in faces if face.too_small]
    if small:
        sizes = ", ".join(f"{face.size_px:.0f} px at {_place(face.box)}" for face in small)
        raise FaceTooSmall(
            f"{len(small)} of {len(found.faces)} faces too small to be anonymised ({sizes}; at least {MIN_FACE_PX} px "
            "needed), so the photo is withheld: use a larger original or crop these people away"
        )
    aligned = np.empty((len(faces), CROP_SIZE, CROP_SIZE, 3), np.uint8)
    for place, index in enumerate(chosen):
        aligned[place] = found.align(index)
    watch.lap("align")
    personas = draw(len(found.faces), persona_key)
    return Prepared(
        photo=found.photo,
        faces=faces,
        faces_found=len(found.faces),
        aligned=aligned,
        directions=tuple(choice for choice in choices if choice != "leave"),
        genders=tuple(found.genders[index] for index in chosen),
        personas=tuple(personas[index] for index in chosen),
        seconds={**found.seconds, **watch.seconds},
    )


def prepare(source: Any, options: Options) -> Prepared:
    """Decode a photo, find its faces and align them.

    Args:
        source: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
        options: which faces, and how to find them.

    Raises:
        PhotoError: the photo cannot be read (see `visard_preprocess.photo.read_photo`), has no face (`NoFace`), or
            one of the chosen faces is too small to be anonymised (`FaceTooSmall`).
    """
    found = find(source, options)
    wanted = len(found.faces) if options.faces == "all" else 1
    choices: list[Choice] = [options.direction if index < wanted else "leave" for index in range(len(found.faces))]
    return choose(found, choices, persona_key=options.persona_key)


def finish(prepared: Prepared, swaps: Sequence[Swap], options: Options, *, swap_seconds: float = 0.0) -> Result:
    """Score the swapped faces and blend them into the photo.

    Args:
        prepared: what `prepare` returned.
        swaps: the server's answers in the order of `prepared.faces`.
        options: the same as for `prepare`; the faces' directions are those in `prepared`.
        swap_seconds: how long the server took, for the report.

    Raises:
        UncertainGender: a face's apparent gender is less certain than `options.min_confidence`.
    """
    for face, swap in zip(prepared.faces, swaps, strict=True):
        if swap.gender is not None and swap.gender.max() < options.min_confidence:
            raise UncertainGender(
                f"the apparent gender of the face at {_place(face.box)} is only {swap.gender.max():.0%} certain "
                f"(at least {options.min_confidence:.0%} wanted), so the photo is withheld: choose the direction "
                "yourself, or lower min_confidence"
            )
    watch = Stopwatch()
    faces = tuple(
        _score(face, aligned, swap, known, replace(options, direction=direction))
        for face, aligned, swap, known, direction in zip(
            prepared.faces, prepared.aligned, swaps, prepared.genders, prepared.directions, strict=True
        )
    )
    watch.lap("score")
    photo = None
    if options.output == "photo":
        photo = blend(prepared.photo, faces)
        watch.lap("blend")
    return Result(
        photo=photo,
        faces=faces,
        faces_found=prepared.faces_found,
        seconds={**prepared.seconds, "swap": swap_seconds, **watch.seconds},
    )


def blend(photo: NDArray[np.uint8], faces: Sequence[FaceResult]) -> NDArray[np.uint8]:
    """Put swapped faces where they belong: a new photo of the same shape."""
    from visard_preprocess.compose import FaceSwap, compose

    return compose(photo, [FaceSwap(quad=face.quad, aligned=face.aligned, swapped=face.swapped) for face in faces])


def _score(
    face: Face, aligned: NDArray[np.uint8], swap: Swap, known: ApparentGender | None, options: Options
) -> FaceResult:
    result = score_face(face, aligned, swap, options)
    return result if result.gender is not None else replace(result, gender=known)


def score_face(face: Face, aligned: NDArray[np.uint8], swap: Swap, options: Options) -> FaceResult:
    """Say how well one swap hides its face.

    Args:
        face: where it lies in the photo.
        aligned: (512, 512, 3) uint8 RGB, the original face.
        swap: the server's answer.
        options: the direction that the server was asked for, and whether to measure identity.
    """
    gender = None if swap.gender is None else ApparentGender.from_probabilities(swap.gender)
    similarity_percent, pixel_cosine = scoring.similarity(aligned, swap.swapped)
    return FaceResult(
        box=face.box,
        quad=face.quad,
        aligned=aligned,
        swapped=swap.swapped,
        target=_TARGETS[options.direction] if gender is None else _opposite(gender.label),
        gender=gender,
        swapped_gender=ApparentGender.from_probabilities(swap.swapped_gender),
        similarity_percent=similarity_percent,
        pixel_cosine=pixel_cosine,
        identity_distance=identity_distance(aligned, swap.swapped, options) if options.identity else None,
    )


def identity_distance(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8], options: Options) -> float:
    """Measure how far the descriptors of two aligned faces lie apart; dlib holds the interpreter meanwhile.

    Args:
        aligned: (512, 512, 3) uint8 RGB.
        swapped: likewise.
        options: which landmarks are used.
    """
    from visard_preprocess.align import finder

    describe = finder(options.landmarks_model).descriptor
    return scoring.identity_distance(describe(aligned), describe(swapped))


def _opposite(gender: Gender) -> Gender:
    return "male" if gender == GENDERS[0] else "female"


def _place(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box
    return f"({left:.0f}, {top:.0f})–({right:.0f}, {bottom:.0f})"
