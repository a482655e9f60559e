"""One photo of a folder, from the bytes of its file to the bytes that may be published, and the record of it.

    read ─► decode ─► find ─► align ─► (swap) ─► judge ─► [second persona: (swap) ─► judge] ─► blend ─► encode ─► prove

`steps` writes this once, as a generator that yields the faces to swap: its caller has the server.
`anonymise` drives it on an event loop, where many photos are under way at once. Whatever is wrong with a photo ends in
its record, never in an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Doc

from visard.declared import check
from visard.judgement import after_second_try, descriptor, for_second_try, identity_distance, judge, score
from visard.options import (
    Choice,
    CoverOption,
    DetectorThreshold,
    DirectionOption,
    IdentityOption,
    KeepOption,
    MinConfidence,
    Options,
    UnswappedOption,
)
from visard.pipeline import Found, Prepared, Stopwatch, choose, find, finish, unswappable
from visard.result import FaceResult, Result, UnswappedFace
from visard.wire import Direction, Swap
from visard_errors import FaceTooSmall, NoFace, NotHidden, PhotoError, UncertainGender, VisardError
from visard_folder.journal import FaceRecord, Outcome, Record
from visard_folder.leaks import prove_clean
from visard_preprocess import DETECTOR_THRESHOLD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from visard_folder.people import People
    from visard_preprocess.exif import Exif
    from visard_preprocess.geometry import Box
    from visard_preprocess.photo import Format, SourceType


class NotAPhoto(Exception):
    """The file is no photo, neither by its content nor by its name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do with every photo of a folder. A journal keeps them: one folder of results, one set of settings."""

    unswapped: UnswappedOption = "cover"
    direction: DirectionOption = "opposite"
    min_confidence: MinConfidence = 0.5
    identity: IdentityOption = True
    no_face: Annotated[
        Literal["withhold", "clean"],
        Doc(
            "A photo in which no face was found, and one may have been missed: write nothing, or write it without its "
            "metadata."
        ),
    ] = "withhold"
    detector_threshold: DetectorThreshold = DETECTOR_THRESHOLD
    cover: CoverOption = "soft"
    keep: KeepOption = "nothing"

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)

    def options(self, **changes: Any) -> Options:
        """Write them as the options of a single photo, where there is such an option."""
        return Options(
            **{
                "direction": self.direction,
                "unswapped": self.unswapped,
                "min_confidence": self.min_confidence,
                "identity": self.identity,
                "detector_threshold": self.detector_threshold,
                "cover": self.cover,
                "keep": self.keep,
                **changes,
            }
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SwapRequest:
    """Faces that a photo waits for: (N, 512, 512, 3) uint8 RGB, which way each goes, and whose look it gets."""

    aligned: NDArray[np.uint8] = field(repr=False)
    directions: tuple[Direction, ...]
    personas: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """What became of a photo.

    Attributes:
        record: what to remember.
        encoded: the bytes of the file to write; None where nothing is written.
    """

    record: Record
    encoded: bytes | None = field(default=None, repr=False)


Steps = Generator[SwapRequest, tuple[Swap, ...], Product]


async def anonymise(
    work: Steps, swap: Callable[[SwapRequest], Awaitable[tuple[Swap, ...]]], threads: Executor
) -> Product:
    """Take one photo through all its steps.

    Args:
        work: what `steps` gave.
        swap: brings the answer to what it asks for.
        threads: do everything else.
    """
    on_thread = partial(asyncio.get_running_loop().run_in_executor, threads)
    step = await on_thread(advance, work)
    while isinstance(step, SwapRequest):
        step = await on_thread(advance, work, await swap(step))
    return step


def advance(work: Steps, swaps: tuple[Swap, ...] | None = None) -> SwapRequest | Product:
    """Do a photo's next step: with nothing the first, later with the answer to what it asked for."""
    try:
        return next(work) if swaps is None else work.send(swaps)
    except StopIteration as end:
        product: Product = end.value
        return product


def steps(
    read: Callable[[], bytes],
    path: str,
    settings: Settings,
    *,
    people: People | None = None,
    boxes: tuple[Box, ...] = (),
    key: bytes | None = None,
    persona_key: str | bytes | None = None,
) -> Steps:
    """Anonymise one photo, asking for swaps on the way.

    Args:
        read: gives the bytes of the file, or raises `PhotoError` or `NotAPhoto`.
        path: for the record.
        settings: what to do.
        people: who stays visible, where not everybody is hidden.
        boxes: around faces that the detector misses; these do not stay visible, whoever it is.
        key: for the HMAC of the file; no hash without it.
        persona_key: see `visard.Options`. No record holds it.

    Yields:
        Faces to swap. The answers are sent in, in their order.

    Returns:
        What became of it: what is wrong with this photo stands in its record.

    Raises:
        VisardError: what is wrong with every photo, such as a model that is not installed.
    """
    work = _Photo(path, settings.options(persona_key=persona_key, boxes=boxes), settings.no_face, people)
    try:
        data = read()
        if key is not None:
            work.hash = hmac.new(key, data, hashlib.sha256).hexdigest()
        work.watch.lap("read")
        return (yield from work.run(data))
    except NotAPhoto:
        return Product(record=Record(path=path, outcome="ignored"))
    except (FaceTooSmall, NoFace, NotHidden, UncertainGender) as error:
        return work.unwritten("withheld", type(error).__name__, str(error))
    except PhotoError as error:
        return work.unwritten("failed", type(error).__name__, str(error))
    except VisardError:  # nothing that another photo could do better, such as a model that is not installed
        raise
    except Exception as error:  # a defect that one photo brings out: its words may hold anything, so they stay here
        return work.unwritten("failed", type(error).__name__, "a defect in Visard: please report it")


class _Photo:
    """One photo under way: what is known about it so far."""

    def __init__(self, path: str, options: Options, no_face: str, people: People | None) -> None:
        self.path = path
        self.options = options
        self.no_face = no_face
        self.people = people
        self.hash: str | None = None
        self.found: Found | None = None
        self.faces: dict[int, FaceResult] = {}
        self.watch = Stopwatch()

    def run(self, data: bytes) -> Steps:
        from visard_preprocess.exif import kept

        self.found = found = find(data, self.options)
        self.watch.lap("find")
        if not found.faces:
            if self.no_face == "withhold":
                raise NoFace("no face was found, and one may have been missed: look at the photo, or allow such photos")
            exif = kept(found.exif, self.options.keep)
            result = Result(photo=found.photo, faces=(), seconds=found.seconds, exif=exif)
        else:
            result = yield from self._anonymise(found)
        self.watch.lap("blend")
        assert result.photo is not None  # noqa: S101 - it was asked for
        encoded = _encode(result.photo, _written(data), result.source_type, result.exif)
        self.watch.lap("encode")
        faces = tuple(_face_record(face) for face in result.all_faces)
        seconds = {**self.watch.seconds, **result.seconds}
        return Product(record=self._record(_outcome(result), faces, seconds), encoded=encoded)

    def unwritten(self, outcome: Outcome, error: str, message: str) -> Product:
        faces = () if self.found is None else self.found.faces
        records = tuple(
            replace(_face_record(self.faces[index]), outcome="withheld")
            if index in self.faces
            else FaceRecord(
                box=_whole(face.box),
                outcome="withheld",
                reason=unswappable(face),
            )
            for index, face in enumerate(faces)
        )
        record = self._record(outcome, records, self.watch.seconds)
        return Product(record=replace(record, error=error, message=message))

    def _anonymise(self, found: Found) -> Generator[SwapRequest, tuple[Swap, ...], Result]:
        options = self.options
        choices: list[Choice] = [options.direction] * len(found.faces)
        if self.people is not None:
            found = self._cut_out(found)
            for index, crop in found.aligned.items():
                if not found.faces[index].by_hand and self.people.stays_visible(descriptor(crop, options)):
                    choices[index] = "leave"
            self.watch.lap("people")
        prepared = choose(found, choices, persona_key=options.persona_key, unswapped=options.unswapped)
        self.watch.lap("align")
        faces = yield from self._swap(prepared)
        if again := for_second_try(faces):
            seconds = yield from self._swap(prepared.again(again))
            faces = after_second_try(faces, dict(zip(again, seconds, strict=True)))
        self.faces = {face.index: face for face in faces}
        return finish(prepared, faces, options, self.watch.seconds)

    def _cut_out(self, found: Found) -> Found:
        """Align every face that is large enough for it to be told whose it is."""
        return replace(
            found,
            aligned={index: found.align(index) for index, face in enumerate(found.faces) if unswappable(face) is None},
        )

    def _swap(self, prepared: Prepared) -> Generator[SwapRequest, tuple[Swap, ...], list[FaceResult]]:
        """Have faces swapped, and judge them."""
        if not prepared.faces:
            return []
        swaps = yield SwapRequest(aligned=prepared.aligned, directions=prepared.directions, personas=prepared.personas)
        self.watch.lap("swap")
        faces = score(prepared, swaps, self.options)
        distances = None
        if self.options.identity:
            distances = [identity_distance(face.aligned, face.swapped, self.options) for face in faces]
        self.watch.lap("score")
        return judge(prepared, faces, distances, self.options)

    def _record(self, outcome: Outcome, faces: tuple[FaceRecord, ...], seconds: Mapping[str, float]) -> Record:
        height, width = (None, None) if self.found is None else self.found.photo.shape[:2]
        return Record(
            path=self.path,
            boxes=self.options.boxes,
            outcome=outcome,
            hash=self.hash,
            width=width,
            height=height,
            faces_found=len(faces),
            faces=faces,
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
        )


def _outcome(result: Result) -> Outcome:
    """What became of a photo that is written."""
    reasons = {face.reason for face in result.all_faces if face.outcome == "visible"}
    if reasons - {"chosen"}:
        return "visible"
    return "anonymised" if result.count("swapped") or result.count("covered") else "cleaned"


def _face_record(face: FaceResult | UnswappedFace) -> FaceRecord:
    record = FaceRecord(box=_whole(face.box), outcome=face.outcome, reason=face.reason)
    if isinstance(face, UnswappedFace):
        return record
    return replace(
        record,
        target=face.target,
        gender=None if face.gender is None else face.gender.label,
        gender_confidence=None if face.gender is None else round(face.gender.confidence, 4),
        swapped_gender=face.swapped_gender.label,
        swapped_confidence=round(face.swapped_gender.confidence, 4),
        similarity_percent=round(face.similarity_percent, 3),
        identity_distance=None if face.identity_distance is None else round(face.identity_distance, 4),
    )


def _whole(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge) for edge in box)
    return left, top, right, bottom


def _written(data: bytes) -> Format:
    """Choose the format of a result: that of the photo, or JPEG where that is not written."""
    from visard_preprocess.photo import photo_format

    format_ = photo_format(data)
    return format_ if format_ in ("PNG", "WEBP") else "JPEG"


def _encode(photo: NDArray[np.uint8], format_: Format, source_type: SourceType | None, exif: Exif) -> bytes:
    from visard_preprocess.photo import encode_photo

    encoded = encode_photo(photo, format_, source_type=source_type, exif=exif)
    prove_clean(encoded, format_, source_type, exif)
    return encoded
