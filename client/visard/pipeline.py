"""The two halves of one photo that need no server: `prepare` before the swap, `finish` after it.

    photo ─► find: decode, find faces ─► choose: align ─► (swap, by a client) ─► score ─► finish: blend ─► Result
             └─────────────── prepare ───────────────┘    └─ twice where it fails ──┘

Pure functions of their arguments, run by both clients on worker threads: Pillow, dlib and most of numpy release the
GIL. Connections are left to the clients.

A photo fails closed: a face that cannot be swapped well enough is covered, or no photo comes back, unless the caller
wants to see it; see `visard.policy`, and `visard.judgement` for what is well enough.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from visard.boxes import with_boxes
from visard.judgement import TARGETS, identity_distance
from visard.options import Choice
from visard.personas import draw
from visard.policy import FaceOutcome, Reason, Unswapped, withheld
from visard.result import ApparentGender, FaceResult, ImageFormat, Result, UnswappedFace, encode
from visard.wire import Direction
from visard_errors import NoFace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from visard.options import Options
    from visard_preprocess import CoverStyle
    from visard_preprocess.align import Face
    from visard_preprocess.exif import Exif
    from visard_preprocess.geometry import Box

_DIRECTIONS = {target: direction for direction, target in TARGETS.items()}


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
        exif: what `Options.keep` can keep of the photo's metadata.
    """

    photo: NDArray[np.uint8] = field(repr=False)
    faces: tuple[Face, ...]
    genders: tuple[ApparentGender | None, ...]
    seconds: dict[str, float]
    aligned: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    exif: Exif = field(default_factory=dict, repr=False)

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
        exif: what may be kept of its metadata.
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
    exif: Exif = field(default_factory=dict, repr=False)

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
    from visard_preprocess.photo import read_photo_and_exif

    watch = Stopwatch()
    if isinstance(source, Found):
        found = source
    else:
        photo, exif = read_photo_and_exif(source, max_pixels=options.max_pixels)
        watch.lap("decode")
        faces = finder(options.landmarks_model).find(photo, options.detector_threshold)
        found = Found(photo=photo, faces=faces, genders=(None,) * len(faces), seconds={}, exif=exif)
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
        PhotoError: one of those that are to be swapped cannot be, and the photo is to be withheld then.
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
        exif=found.exif,
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
    from visard_preprocess.exif import kept

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
        photo = blend(prepared.photo, faces, others, options.cover)
        watch.lap("blend")
    return Result(
        photo=photo,
        faces=tuple(faces),
        others=tuple(sorted(others, key=lambda face: face.index)),
        seconds={**prepared.seconds, **seconds, **watch.seconds},
        exif={} if photo is None else kept(prepared.exif, options.keep),
    )


def _unswapped(index: int, box: Box, reason: Reason, unswapped: Unswapped) -> UnswappedFace:
    return UnswappedFace(index=index, box=box, outcome="visible" if unswapped == "show" else "covered", reason=reason)


def blend(
    photo: NDArray[np.uint8],
    faces: Sequence[FaceResult],
    others: Sequence[UnswappedFace] = (),
    style: CoverStyle = "soft",
) -> NDArray[np.uint8]:
    """Put swapped faces where they belong and cover those that are to be covered: a new photo of the same shape."""
    from visard_preprocess.compose import FaceSwap, compose
    from visard_preprocess.cover import cover

    result = compose(photo, [FaceSwap(quad=face.quad, aligned=face.aligned, swapped=face.swapped) for face in faces])
    # Last: the swap of a face next to it must not bring it back.
    cover(result, [face.box for face in others if face.outcome == "covered"], style)
    return result
