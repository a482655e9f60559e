"""The two halves of one photo that need no server: `prepare` before the swap, `finish` after it.

    photo ─► find: decode, find faces ─► choose: align ─► (swap, by a client) ─► score ─► finish: blend ─► Result
             └─────────────── prepare ───────────────┘    └─ twice where it fails ──┘

Pure functions of their arguments, run by both clients on worker threads: Pillow, dlib and most of numpy release the
GIL. Connections are left to the clients.

A photo fails closed: a face that cannot be swapped well enough is covered, or no photo comes back, unless the caller
wants to see it; see `visard.policy`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from typing_extensions import Doc

from visard import scoring
from visard.boxes import check_boxes, with_boxes
from visard.declared import check
from visard.personas import draw
from visard.policy import SECOND_TRY, FaceOutcome, Reason, Unswapped, withheld
from visard.result import ApparentGender, FaceResult, Gender, ImageFormat, Result, UnswappedFace, encode
from visard.wire import GENDERS, Direction, Swap
from visard_errors import NoFace
from visard_preprocess import DETECTOR_THRESHOLD, MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from visard_preprocess.align import Face
    from visard_preprocess.geometry import Box

# A direction for one face, or that it is covered, or stays visible.
Choice = Literal["opposite", "to_male", "to_female", "cover", "leave"]

_TARGETS: dict[Direction, Gender] = {"to_male": "male", "to_female": "female"}
_DIRECTIONS: dict[Gender, Direction] = {"male": "to_male", "female": "to_female"}


# What other options have too, in the same words.
DirectionOption = Annotated[
    Direction, Doc("Swap to the opposite of each face's apparent gender, or all faces one way.")
]
DetectorThreshold = Annotated[
    float,
    Interval(ge=0.3, le=0.95),
    Doc("The score from which on something is a face: lower finds more faces, and more that are none."),
]
MinConfidence = Annotated[
    float, Interval(ge=0.5, le=1.0), Doc("A face whose apparent gender is less certain counts as not swapped.")
]
UnswappedOption = Annotated[
    Unswapped,
    Doc(
        "A face that could not be swapped well enough, also with a second persona: cover it, withhold the photo, or "
        "leave it visible."
    ),
]
IdentityOption = Annotated[
    bool,
    Doc("A face that a recogniser still matches counts as not swapped. Costs most of the time; off for speed."),
]
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
    """

    faces: Annotated[
        Literal["all", "largest"], Doc("'largest' leaves every other face visible, but not those drawn by hand.")
    ] = "all"
    direction: DirectionOption = "opposite"
    min_confidence: MinConfidence = 0.5
    unswapped: UnswappedOption = "cover"
    output: Annotated[
        Literal["photo", "crops"], Doc("The photo with the faces blended in, or the generated faces alone.")
    ] = "photo"
    identity: IdentityOption = True
    detector_threshold: DetectorThreshold = DETECTOR_THRESHOLD
    landmarks_model: Annotated[
        str | PathLike[str] | None,
        Doc("Path of another 68-point predictor (.dat or .dat.bz2) than the installed one."),
    ] = None
    max_pixels: Annotated[int, Interval(ge=1), Doc("A photo with more is refused before it is decoded.")] = MAX_PIXELS
    persona_key: PersonaKey = field(default=None, repr=False)
    boxes: Annotated[
        tuple[tuple[float, float, float, float], ...],
        Doc(
            "Around faces that the detector misses: left, top, right and bottom in pixels of the upright photo, at "
            "most 100. Such a face is swapped or covered as any other; a box over a face that was found adds none."
        ),
    ] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)
        object.__setattr__(self, "boxes", check_boxes(self.boxes))
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
        faces: all of them, those that are too small to be anonymised among them: the detected ones, largest first,
            then those that were drawn by hand, in the order of their boxes.
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
        indices: which of the photo's faces are to be swapped, the largest first.
        faces: these faces.
        aligned: (N, 512, 512, 3) uint8 RGB, in the order of `faces`.
        directions: which way each of them goes.
        genders: what is known of each of them before the swap.
        personas: whose look each of them gets; see `visard.personas`.
        spare_personas: whose look it gets where the first does not do.
        others: what becomes of the other faces.
        seconds: wall time of `decode`, `find` and `align`.
    """

    photo: NDArray[np.uint8] = field(repr=False)
    indices: tuple[int, ...]
    faces: tuple[Face, ...]
    aligned: NDArray[np.uint8] = field(repr=False)
    directions: tuple[Direction, ...]
    genders: tuple[ApparentGender | None, ...]
    personas: tuple[int, ...] = field(repr=False)
    spare_personas: tuple[int, ...] = field(repr=False)
    others: tuple[UnswappedFace, ...]
    seconds: dict[str, float]

    @property
    def faces_found(self) -> int:
        """How many faces there are: those that the detector saw, and those that were drawn by hand."""
        return len(self.faces) + len(self.others)

    def again(self, results: Mapping[int, FaceResult]) -> Prepared:
        """Take those faces alone, each in the direction that it took, with its spare persona.

        Args:
            results: place in `faces` → the swap that did not do.
        """
        return replace(
            self,
            indices=tuple(self.indices[place] for place in results),
            faces=tuple(self.faces[place] for place in results),
            aligned=self.aligned[list(results)],
            directions=tuple(_DIRECTIONS[result.target] for result in results.values()),
            genders=tuple(result.gender for result in results.values()),
            personas=tuple(self.spare_personas[place] for place in results),
        )


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
        source: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array; or what this returned before,
            whose detected faces are kept.
        options: how to find them, and what is too large.

    Raises:
        PhotoError: the photo cannot be read, see `visard_preprocess.photo.read_photo`; or a box leaves it.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.photo import read_photo

    watch = Stopwatch()
    if isinstance(source, Found):
        found = source
    else:
        photo = read_photo(source, max_pixels=options.max_pixels)
        watch.lap("decode")
        faces = finder(options.landmarks_model).find(photo, options.detector_threshold)
        found = Found(photo=photo, faces=faces, genders=(None,) * len(faces), seconds={})
    found = with_boxes(found, options.boxes, options.landmarks_model)
    watch.lap("find")
    return replace(found, seconds={**found.seconds, **watch.seconds})


def unswappable(face: Face) -> Reason | None:
    """Say why a face cannot even be sent to a generator; None where it can."""
    if face.too_small:
        return "too_small"
    return None if face.confirmed and not face.obstructed and face.landmarks is not None else "unclear"


def choose(
    found: Found,
    choices: Sequence[Choice],
    *,
    persona_key: str | bytes | None = None,
    unswapped: Unswapped = "cover",
) -> Prepared:
    """Align the faces that are to be swapped, and draw their personas.

    Args:
        found: what `find` returned.
        choices: one for each of its faces, in their order.
        persona_key: see `Options`. A face's persona does not depend on what is chosen for the others.
        unswapped: what becomes of a face that cannot be swapped as it was chosen.

    Raises:
        NoFace: there is none to choose from.
        FaceTooSmall: one of those that are to be swapped, and the photo is to be withheld then.
    """
    from visard_preprocess.geometry import CROP_SIZE

    for choice in choices:
        if choice not in get_args(Choice):
            raise ValueError(f"a choice is one of {', '.join(get_args(Choice))}, not {choice!r}")
    if len(choices) != len(found.faces):
        raise ValueError(f"there are {len(found.faces)} faces, not {len(choices)}")
    if not found.faces:
        raise NoFace(
            "no face was found: use a photo that shows one more clearly, a lower detector_threshold, or boxes around "
            "the faces"
        )
    watch = Stopwatch()
    others: list[UnswappedFace] = []
    directions: dict[int, Direction] = {}
    for index, (face, choice) in enumerate(zip(found.faces, choices, strict=True)):
        if choice in ("leave", "cover"):
            outcome: FaceOutcome = "visible" if choice == "leave" else "covered"
            others.append(UnswappedFace(index=index, box=face.box, outcome=outcome, reason="chosen"))
        elif (reason := unswappable(face)) is not None:
            others.append(_unswapped(index, face.box, reason, unswapped))
        else:
            directions[index] = cast("Direction", choice)
    if unswapped == "withhold" and (reasons := [face.reason for face in others if face.reason != "chosen"]):
        raise withheld(reasons)
    aligned = np.empty((len(directions), CROP_SIZE, CROP_SIZE, 3), np.uint8)
    for place, index in enumerate(directions):
        aligned[place] = found.align(index)
    watch.lap("align")
    personas = draw(2 * len(found.faces), persona_key)
    return Prepared(
        photo=found.photo,
        indices=tuple(directions),
        faces=tuple(found.faces[index] for index in directions),
        aligned=aligned,
        directions=tuple(directions.values()),
        genders=tuple(found.genders[index] for index in directions),
        personas=tuple(personas[index] for index in directions),
        spare_personas=tuple(personas[len(found.faces) + index] for index in directions),
        others=tuple(others),
        seconds={**found.seconds, **watch.seconds},
    )


def prepare(source: Any, options: Options) -> Prepared:
    """Decode a photo, find its faces and align them.

    Args:
        source: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
        options: which faces, and how to find them.

    Raises:
        PhotoError: the photo cannot be read (see `visard_preprocess.photo.read_photo`), has no face (`NoFace`), or
            is withheld for one of them.
    """
    found = find(source, options)
    return choose(found, choices_of(found, options), persona_key=options.persona_key, unswapped=options.unswapped)


def choices_of(found: Found, options: Options) -> list[Choice]:
    """Say what becomes of each face by `faces` and `direction`."""
    return [
        options.direction if options.faces == "all" or index == 0 or face.by_hand else "leave"
        for index, face in enumerate(found.faces)
    ]


def score(prepared: Prepared, swaps: Sequence[Swap], options: Options) -> list[FaceResult]:
    """Compare swapped faces with the originals; without their identity, which `judge` is given.

    Args:
        prepared: what `prepare` returned.
        swaps: the server's answers in the order of `prepared.faces`.
        options: whose landmarks are used.
    """
    from visard_preprocess.align import finder

    faces = [
        score_face(face, aligned, swap, direction, index=index, known=known)
        for index, face, aligned, swap, direction, known in zip(
            prepared.indices,
            prepared.faces,
            prepared.aligned,
            swaps,
            prepared.directions,
            prepared.genders,
            strict=True,
        )
    ]
    look = finder(options.landmarks_model)
    return [
        face if look.takes_its_place(face.swapped, face.aligned) else replace(face, reason="implausible")
        for face in faces
    ]


def judged(face: FaceResult, direction: Direction, options: Options) -> FaceResult:
    """Say why a swap is not good enough, if it is not.

    Args:
        face: scored, with its identity distance where identity is a criterion.
        direction: that the server was asked for; where the caller gave it, no certainty is needed.
        options: `min_confidence`.
    """
    reason = face.reason
    if direction == "opposite" and face.gender is not None and face.gender.confidence < options.min_confidence:
        reason = "uncertain"
    elif not face.flipped:
        reason = "not_flipped"
    elif face.same_person:
        reason = "still_recognised"
    return replace(face, reason=reason)


def judge(
    prepared: Prepared, faces: Sequence[FaceResult], distances: Sequence[float] | None, options: Options
) -> list[FaceResult]:
    """Add their identity distances to scored faces, and say of each why it is not good enough, if it is not.

    Args:
        prepared: whose faces they are, in its order.
        faces: what `score` returned.
        distances: see `identity_distance`; None where identity is no criterion.
        options: as for `judged`.
    """
    if distances is not None:
        faces = [replace(face, identity_distance=distance) for face, distance in zip(faces, distances, strict=True)]
    return [judged(face, direction, options) for face, direction in zip(faces, prepared.directions, strict=True)]


def for_second_try(faces: Sequence[FaceResult]) -> dict[int, FaceResult]:
    """Choose those that another persona may help: place in `faces` → the face, for `Prepared.again`."""
    return {place: face for place, face in enumerate(faces) if face.reason in SECOND_TRY}


def after_second_try(faces: Sequence[FaceResult], seconds: Mapping[int, FaceResult]) -> list[FaceResult]:
    """Put second tries that are good enough in the place of the first; the others change nothing.

    Args:
        faces: judged.
        seconds: place in `faces` → the second try, judged.
    """
    good = {place: face for place, face in seconds.items() if face.reason is None}
    return [good.get(place, face) for place, face in enumerate(faces)]


def finish(prepared: Prepared, faces: Sequence[FaceResult], options: Options, seconds: Mapping[str, float]) -> Result:
    """Blend the swapped faces into the photo, and cover the others.

    Args:
        prepared: what `prepare` returned.
        faces: judged, in the order of `prepared.faces`.
        options: the same as for `prepare`.
        seconds: wall time of what came between.

    Raises:
        PhotoError: a face could not be swapped well enough, and the photo is to be withheld then.
    """
    failed = [face.reason for face in faces if face.reason is not None]
    if failed and options.unswapped == "withhold":
        raise withheld(failed)
    others = list(prepared.others)
    if options.unswapped == "cover":
        others += [_unswapped(face.index, face.box, face.reason, "cover") for face in faces if face.reason is not None]
        faces = [face for face in faces if face.reason is None]
    watch = Stopwatch()
    photo = None
    if options.output == "photo":
        photo = blend(prepared.photo, faces, others)
        watch.lap("blend")
    return Result(
        photo=photo,
        faces=tuple(faces),
        others=tuple(sorted(others, key=lambda face: face.index)),
        seconds={**prepared.seconds, **seconds, **watch.seconds},
    )


def _unswapped(index: int, box: Box, reason: Reason, unswapped: Unswapped) -> UnswappedFace:
    return UnswappedFace(index=index, box=box, outcome="visible" if unswapped == "show" else "covered", reason=reason)


def blend(
    photo: NDArray[np.uint8], faces: Sequence[FaceResult], others: Sequence[UnswappedFace] = ()
) -> NDArray[np.uint8]:
    """Put swapped faces where they belong and cover those that are to be covered: a new photo of the same shape."""
    from visard_preprocess.compose import FaceSwap, compose
    from visard_preprocess.cover import cover

    result = compose(photo, [FaceSwap(quad=face.quad, aligned=face.aligned, swapped=face.swapped) for face in faces])
    # Last: the swap of a face next to it must not bring it back.
    cover(result, [face.box for face in others if face.outcome == "covered"])
    return result


def score_face(
    face: Face,
    aligned: NDArray[np.uint8],
    swap: Swap,
    direction: Direction,
    *,
    index: int = 0,
    known: ApparentGender | None = None,
) -> FaceResult:
    """Compare one swapped face with its original, all but their identity.

    Args:
        face: where it lies in the photo.
        aligned: (512, 512, 3) uint8 RGB, the original face.
        swap: the server's answer.
        direction: that the server was asked for.
        index: which of the photo's faces it is.
        known: its apparent gender, where it was asked for before and not again.
    """
    gender = None if swap.gender is None else ApparentGender.from_probabilities(swap.gender)
    similarity_percent, pixel_cosine = scoring.similarity(aligned, swap.swapped)
    return FaceResult(
        index=index,
        box=face.box,
        quad=face.quad,
        aligned=aligned,
        swapped=swap.swapped,
        target=_TARGETS[direction] if gender is None else _opposite(gender.label),
        gender=gender or known,
        swapped_gender=ApparentGender.from_probabilities(swap.swapped_gender),
        similarity_percent=similarity_percent,
        pixel_cosine=pixel_cosine,
        identity_distance=None,
    )


def identity_distance(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8], options: Options) -> float:
    """Measure how far the descriptors of two aligned faces lie apart; dlib holds the interpreter meanwhile.

    Args:
        aligned: (512, 512, 3) uint8 RGB.
        swapped: likewise.
        options: which landmarks are used.
    """
    return scoring.identity_distance(descriptor(aligned, options), descriptor(swapped, options))


def descriptor(aligned: NDArray[np.uint8], options: Options) -> NDArray[np.float64]:
    """Describe whose face it is, for dlib's recogniser: (128,), see `visard_preprocess.align.FaceFinder.descriptor`.

    Args:
        aligned: (512, 512, 3) uint8 RGB.
        options: whose landmarks are used.
    """
    from visard_preprocess.align import finder

    return finder(options.landmarks_model).descriptor(aligned)


def _opposite(gender: Gender) -> Gender:
    return "male" if gender == GENDERS[0] else "female"
