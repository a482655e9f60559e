"""One photo of a folder, from the bytes of its file to the bytes that may be published, and the record of it.

    read ─► decode ─► find ─► align ─► (swap) ─► judge ─► [second pass: (swap) ─► judge] ─► blend ─► encode ─► prove

`steps` writes this once, as a generator that yields the faces to swap: its caller has the server.
`anonymise` drives it on an event loop, where many photos are under way at once. Whatever is wrong with a photo ends in
its record, never in an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Doc

from visard.declared import check
from visard.personas import draw
from visard.pipeline import Certainty, DetectorThreshold, DirectionOption, Options, Stopwatch, score_face
from visard.wire import Direction, Swap
from visard_errors import FaceTooSmall, NoFace, NotHidden, PhotoError, UncertainGender, VisardError
from visard_folder.journal import FaceRecord, Outcome, Record
from visard_folder.leaks import prove_clean
from visard_folder.policy import Policy, Treatment, Verdict, judge, judge_again, pixelate
from visard_preprocess import DETECTOR_THRESHOLD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from visard.result import FaceResult, Gender
    from visard_folder.people import People
    from visard_preprocess.align import Face
    from visard_preprocess.photo import Format, SourceType


class NotAPhoto(Exception):
    """The file is no photo, neither by its content nor by its name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do with every photo of a folder. A journal keeps them: one folder of results, one set of settings."""

    policy: Annotated[
        Policy,
        Doc(
            "A photo with a face that could not be hidden: report it and write nothing, write it with that face made "
            "of a few blocks, or try that face a second time."
        ),
    ] = "report"
    direction: DirectionOption = "opposite"
    min_confidence: Annotated[Certainty, Doc("A face whose apparent gender is less certain counts as not hidden.")] = (
        0.5
    )
    identity: Annotated[bool, Doc("A face that a recogniser still matches counts as not hidden.")] = False
    no_face: Annotated[
        Literal["withhold", "clean"],
        Doc(
            "A photo in which no face was found, and one may have been missed: write nothing, or write it without its "
            "metadata."
        ),
    ] = "withhold"
    detector_threshold: DetectorThreshold = DETECTOR_THRESHOLD

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)

    def options(self, **changes: Any) -> Options:
        """Write them as the options of a single photo, where there is such an option."""
        return Options(
            **{
                "direction": self.direction,
                "min_confidence": self.min_confidence,
                "identity": self.identity,
                "detector_threshold": self.detector_threshold,
                **changes,
            }
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SwapRequest:
    """Faces that a photo waits for: (N, 512, 512, 3) uint8 RGB, which way they go, and whose look each of them gets."""

    aligned: NDArray[np.uint8] = field(repr=False)
    direction: Direction
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
    key: bytes | None = None,
    persona_key: str | bytes | None = None,
) -> Steps:
    """Anonymise one photo, asking for swaps on the way.

    Args:
        read: gives the bytes of the file, or raises `PhotoError` or `NotAPhoto`.
        path: for the record.
        settings: what to do.
        people: who stays visible, where not everybody is hidden.
        key: for the HMAC of the file; no hash without it.
        persona_key: see `visard.Options`. No record holds it.

    Yields:
        Faces to swap. The answers are sent in, in their order.

    Returns:
        What became of it: what is wrong with this photo stands in its record.

    Raises:
        VisardError: what is wrong with every photo, such as a model that is not installed.
    """
    work = _Photo(path, settings, people, persona_key)
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

    def __init__(self, path: str, settings: Settings, people: People | None, persona_key: str | bytes | None) -> None:
        self.path = path
        self.settings = settings
        self.people = people
        self.persona_key = persona_key
        self.hash: str | None = None
        self.size: tuple[int, int] | None = None
        self.faces: tuple[Face, ...] = ()
        self.verdicts: list[Verdict] = []
        self.treatments: dict[int, Treatment] = {}
        self.results: dict[int, FaceResult] = {}
        self.personas: tuple[int, ...] = ()  # two for each face: one for a second pass, which needs another chance
        self.watch = Stopwatch()

    def run(self, data: bytes) -> Steps:
        from visard_preprocess.align import finder
        from visard_preprocess.compose import FaceSwap, compose
        from visard_preprocess.photo import photo_format, read_photo

        photo = read_photo(data)
        self.size = photo.shape[1], photo.shape[0]
        self.watch.lap("decode")
        self.faces = finder().find(photo, self.settings.detector_threshold)
        self.personas = draw(2 * len(self.faces), self.persona_key)
        self.verdicts = ["too_small" if face.too_small else "untried" for face in self.faces]
        self.watch.lap("find")
        if not self.faces and self.settings.no_face == "withhold":
            raise NoFace("no face was found, and one may have been missed: look at the photo, or allow such photos")
        aligned = self._align(photo)
        if self.settings.policy == "blur" or "too_small" not in self.verdicts:
            yield from self._swap(aligned)
        bare = [index for index, verdict in enumerate(self.verdicts) if verdict not in ("hidden", "kept")]
        if bare and self.settings.policy != "blur":
            raise self._not_hidden()
        hidden = [result for index, result in self.results.items() if index not in bare]
        result = compose(
            photo, [FaceSwap(quad=face.quad, aligned=face.aligned, swapped=face.swapped) for face in hidden]
        )
        pixelate(result, (self.faces[index].box for index in bare))  # last: a swap next to it must not bring it back
        self.treatments |= dict.fromkeys(bare, "pixelated")
        self.watch.lap("blend")
        format_ = photo_format(data)
        assert format_ is not None  # noqa: S101 - it was decoded
        encoded = _encode(result, format_, "compositeWithTrainedAlgorithmicMedia" if hidden else None)
        self.watch.lap("encode")
        outcome: Outcome = "blurred" if bare else "anonymised" if hidden else "cleaned"
        return Product(record=self._record(outcome), encoded=encoded)

    def unwritten(self, outcome: Outcome, error: str, message: str) -> Product:
        self.treatments = {}
        return Product(record=replace(self._record(outcome), error=error, message=message))

    def _align(self, photo: NDArray[np.uint8]) -> dict[int, NDArray[np.uint8]]:
        """Cut out the faces that have to be swapped: index → crop."""
        from visard_preprocess.align import finder
        from visard_preprocess.geometry import crop

        aligned = {
            index: crop(photo, face.quad)
            for index, face in enumerate(self.faces)
            if not face.too_small  # nor can the person be identified: it is hidden, whatever people are to stay visible
        }
        self.watch.lap("align")
        if self.people is not None:
            describe = finder().descriptor
            for index in [index for index, face in aligned.items() if self.people.stays_visible(describe(face))]:
                self.verdicts[index] = "kept"
                del aligned[index]
            self.watch.lap("people")
        return aligned

    def _swap(self, aligned: dict[int, NDArray[np.uint8]]) -> Generator[SwapRequest, tuple[Swap, ...], None]:
        """Have faces swapped and judge them, a second time where the policy asks for it."""
        if not aligned:
            return
        swaps = yield SwapRequest(
            aligned=np.stack(list(aligned.values())),
            direction=self.settings.direction,
            personas=tuple(self.personas[index] for index in aligned),
        )
        self.watch.lap("swap")
        options = self.settings.options()
        for (index, face), swap in zip(aligned.items(), swaps, strict=True):
            result = score_face(self.faces[index], face, swap, options)
            self.results[index] = result
            self.verdicts[index] = judge(result, self.settings.min_confidence)
            self.treatments[index] = "swapped"
        self.watch.lap("score")
        if self.settings.policy == "second-pass":
            yield from self._swap_again([index for index in aligned if self.verdicts[index] != "hidden"])

    def _swap_again(self, again: list[int]) -> Generator[SwapRequest, tuple[Swap, ...], None]:
        """Send swapped faces through the generator that made them once more, each with a persona of its own again."""
        targets: dict[Gender, list[int]] = defaultdict(list)
        for index in again:
            targets[self.results[index].target].append(index)
        for target, indices in targets.items():
            direction: Direction = "to_male" if target == "male" else "to_female"
            swaps = yield SwapRequest(
                aligned=np.stack([self.results[index].swapped for index in indices]),
                direction=direction,
                personas=tuple(self.personas[len(self.faces) + index] for index in indices),
            )
            self.watch.lap("swap")
            for index, swap in zip(indices, swaps, strict=True):
                first = self.verdicts[index]
                options = self.settings.options(
                    direction=direction, identity=self.settings.identity or first == "uncertain"
                )
                result = score_face(self.faces[index], self.results[index].aligned, swap, options)
                self.results[index] = replace(result, gender=self.results[index].gender)
                self.verdicts[index] = judge_again(result, first)
                self.treatments[index] = "swapped_twice"
            self.watch.lap("score")

    def _not_hidden(self) -> PhotoError:
        """Say why the photo is withheld: the worst of its faces."""
        from visard_preprocess.align import MIN_FACE_PX

        counts = {verdict: self.verdicts.count(verdict) for verdict in self.verdicts}
        found = len(self.verdicts)
        if n := counts.get("too_small"):
            return FaceTooSmall(f"{n} of {found} faces are smaller than {MIN_FACE_PX} px: use a larger original")
        if n := counts.get("uncertain"):
            least = self.settings.min_confidence
            return UncertainGender(f"the apparent gender of {n} of {found} faces is less certain than {least:.0%}")
        words = {"not_flipped": "still have their apparent gender", "still_recognised": "are still recognised"}
        return NotHidden(
            "; ".join(f"{counts[word]} of {found} faces {words[word]}" for word in words if word in counts)
        )

    def _record(self, outcome: Outcome) -> Record:
        width, height = self.size or (None, None)
        return Record(
            path=self.path,
            outcome=outcome,
            hash=self.hash,
            width=width,
            height=height,
            faces_found=len(self.faces),
            faces=tuple(self._face_record(index) for index in range(len(self.faces))),
            seconds={stage: round(value, 4) for stage, value in self.watch.seconds.items()},
        )

    def _face_record(self, index: int) -> FaceRecord:
        left, top, right, bottom = (round(edge) for edge in self.faces[index].box)
        record = FaceRecord(
            box=(left, top, right, bottom),
            verdict=self.verdicts[index],
            treatment=self.treatments.get(index, "none"),
        )
        result = self.results.get(index)
        if result is None:
            return record
        return replace(
            record,
            target=result.target,
            gender=None if result.gender is None else result.gender.label,
            gender_confidence=None if result.gender is None else round(result.gender.confidence, 4),
            swapped_gender=result.swapped_gender.label,
            swapped_confidence=round(result.swapped_gender.confidence, 4),
            similarity_percent=round(result.similarity_percent, 3),
            identity_distance=None if result.identity_distance is None else round(result.identity_distance, 4),
        )


def _encode(photo: NDArray[np.uint8], format_: Format, source_type: SourceType | None) -> bytes:
    from visard_preprocess.photo import encode_photo

    encoded = encode_photo(photo, format_, source_type=source_type)
    prove_clean(encoded, format_, source_type)
    return encoded
