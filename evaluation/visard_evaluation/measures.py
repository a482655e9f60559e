"""Measures one anonymised photo, or many photos on all cores.

Returns numbers, and descriptors that never leave memory. How the photo was anonymised (by a server, or read from a
folder of results) makes no difference. `reduce.py` averages the numbers.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import PhotoError, ServerError
from visard_evaluation.drift import (
    Pose,
    drift_around_face,
    drift_beyond_crops,
    head_pose,
    landmark_drift_percent,
)
from visard_evaluation.kept import Kept, compare_kept
from visard_evaluation.painting import paint_over
from visard_evaluation.recognisers import View
from visard_evaluation.thumbnails import shrink
from visard_preprocess.machine import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from visard.result import FaceResult, Gender, Outcome, Result
    from visard.wire import Direction, Swap
    from visard_evaluation.judges import Judges
    from visard_evaluation.labels import LabelledPhoto
    from visard_preprocess.geometry import Quad

    Item = TypeVar("Item")
    Value = TypeVar("Value")

_SAME_PLACE_IOU = 0.4  # the detector's boxes move in steps of a fifth, so the same face may be boxed this differently
_BACK: Mapping[Gender, Direction] = {"male": "to_female", "female": "to_male"}
_PICTURE_SIZE = 160


class NotSwapped(PhotoError):
    """The largest face of a photo was not swapped, so that there is nothing to measure."""


class Swapper(Protocol):
    """Swaps aligned faces, as `Client.swap` does."""

    def __call__(self, aligned: NDArray[np.uint8], direction: Direction = "opposite") -> tuple[Swap, ...]:
        """(N, 512, 512, 3) uint8 RGB, or one without N → an answer per face."""


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What changed outside a face.

    Attributes:
        levels: mean absolute difference in grey levels (0..255) over the part of the crop that is not face.
        colour_delta_e: distance of the mean colours of that part, CIE 1976 ΔE; about 2 can just be seen.
        levels_beyond_crop: mean absolute difference over the photo outside all faces' crops; None where nothing is.
    """

    levels: float
    colour_delta_e: float
    levels_beyond_crop: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """What was measured of the largest face of one photo.

    Attributes:
        photo: which one, and its labels.
        gender: apparent gender before.
        target: the apparent gender that the result should have.
        flipped: whether the classifier sees the intended gender in the result.
        similarity_percent: published formula, see `visard.scoring.similarity`.
        detected: whether the detector sees a face in the same place of the result.
        detected_yunet: whether YuNet does; None where it sees none in the original.
        landmark_drift_percent: of the distance between the eyes.
        pose_drift: degrees.
        kept: what else should not have changed.
        outside: what changed outside the face.
        second_genders: apparent gender before and after, by the second classifier; None without one.
        descriptors: (D,) float64 by the recogniser's name and the kind of picture: the face of the `original`, of the
            `anonymised` photo, of that `swapped_back`, and of the `control`, the original painted over; `…_full` are
            those of the whole aligned crop. Biometric data, kept in memory alone.
        features: (2, D) of the face's looks, before and published; None unless requested.
        thumbnails: of the face before, published, and painted over, (3, 96, 96, 3) uint8 RGB, likewise.
        pictures: JPEG files of the face before, published, and swapped back; None unless requested.
    """

    photo: LabelledPhoto
    gender: Gender
    target: Gender
    flipped: bool
    similarity_percent: float
    detected: bool
    detected_yunet: bool | None
    landmark_drift_percent: float
    pose_drift: Pose
    kept: Kept
    outside: Outside
    second_genders: tuple[Gender, Gender] | None
    descriptors: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(repr=False)
    features: NDArray[np.float64] | None = field(default=None, repr=False)
    thumbnails: NDArray[np.uint8] | None = field(default=None, repr=False)
    pictures: tuple[bytes, bytes, bytes] | None = field(default=None, repr=False)

    @property
    def group(self) -> Gender:
        """The label, or the apparent gender where there is no label."""
        return self.photo.gender or self.gender


def measure(photo: LabelledPhoto, result: Result, judges: Judges, swap: Swapper) -> Measures:
    """Measure the largest face of one photo against its original, which is read again.

    Everything but the published similarity is measured on what is published, the blended photo. The attacker of the
    swap-back attack sees that too, and knows where the face is and which generator was used.

    Args:
        photo: the original.
        result: the anonymised photo, of `anonymize` with its default output.
        judges: who judges.
        swap: reaches the generators.

    Raises:
        NotSwapped: the largest face was not.
        PhotoError: the original cannot be read any more, or has another size than the result.
        ServerError: the attack could not be made.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.geometry import crop
    from visard_preprocess.photo import read_photo

    if not result.faces:
        raise NotSwapped(f"the largest face of '{photo.name}' was not swapped")
    face, published = result.faces[0], result.photo
    assert published is not None and face.gender is not None  # noqa: S101, PT018 - OPTIONS asks for both
    original = read_photo(photo.path)
    check_same_size(photo, original, published)
    exposed = crop(published, face.quad)
    (back,) = swap(exposed, _BACK[face.target])
    before, after, attacked = (finder().landmarks(image) for image in (face.aligned, exposed, back.swapped))
    # An attacker who searches with the control knows where the face was: its landmarks are the original's.
    control = paint_over(face.aligned, before)
    views = {
        **_views("original", face.aligned, before),
        **_views("anonymised", exposed, after),
        **_views("control", control, before),
        "swapped_back": View(aligned=back.swapped, landmarks=attacked),
    }
    pair = np.stack([face.aligned, exposed])
    return Measures(
        photo=photo,
        gender=face.gender.label,
        target=face.target,
        flipped=face.flipped,
        similarity_percent=face.similarity_percent,
        detected=any(_iou(face.box, other.box) >= _SAME_PLACE_IOU for other in finder().find_frontal(published)),
        detected_yunet=_detected_yunet(original, published, face.quad),
        landmark_drift_percent=landmark_drift_percent(before, after),
        pose_drift=head_pose(before).drift(head_pose(after)),
        kept=compare_kept(face.aligned, exposed, before, after),
        outside=_outside(face, exposed, original, published),
        second_genders=None if judges.second_classifier is None else _both(judges.second_classifier.genders(pair)),
        descriptors={
            recogniser.name: dict(zip(views, recogniser.describe(list(views.values())), strict=True))
            for recogniser in judges.recognisers
        },
        features=None if judges.perception is None else judges.perception.features(pair),
        thumbnails=np.stack([shrink(each) for each in (*pair, control)]) if judges.restore else None,
        pictures=(_jpeg(face.aligned), _jpeg(exposed), _jpeg(back.swapped)) if judges.pictures else None,
    )


def _views(kind: str, aligned: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> dict[str, View]:
    """A face as recognisers cut it out, and the whole crop."""
    return {kind: View(aligned=aligned, landmarks=landmarks), f"{kind}_full": View(aligned=aligned, landmarks=None)}


def _outside(
    face: FaceResult, exposed: NDArray[np.uint8], original: NDArray[np.uint8], published: NDArray[np.uint8]
) -> Outside:
    from visard_preprocess.align import finder

    levels, colour = drift_around_face(face.aligned, exposed, face.quad, original.shape[:2])
    quads = [each.quad for each in finder().find(original)]
    return Outside(
        levels=levels, colour_delta_e=colour, levels_beyond_crop=drift_beyond_crops(original, published, quads)
    )


def check_same_size(photo: LabelledPhoto, original: NDArray[np.uint8], published: NDArray[np.uint8]) -> None:
    """Raise `PhotoError` where a result cannot be that of its photo."""
    if original.shape != published.shape:
        raise PhotoError(f"the result of '{photo.name}' has another size: compare it with the photo it was made of")


def measure_many(
    photos: Sequence[LabelledPhoto],
    outcomes: Iterable[Outcome],
    judges: Judges,
    swap: Swapper,
) -> Iterator[Measures | Exception]:
    """Measure photos as their outcomes come, several at once, in their order.

    Yields:
        What `measure` returns; the photo's error where it could not be anonymised or measured.
    """

    def work(item: tuple[LabelledPhoto, Outcome]) -> Measures | Exception:
        photo, outcome = item
        if outcome.error is not None:
            return outcome.error
        try:
            return measure(photo, outcome.result, judges, swap)
        except (PhotoError, ServerError) as error:
            return error

    return in_order(work, zip(photos, outcomes, strict=True))


def in_order(work: Callable[[Item], Value], items: Iterable[Item]) -> Iterator[Value]:
    """Map on a thread per core; at most twice as many items are under way, and values come in their items' order."""
    workers = cores()
    pending: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="visard-evaluate") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _detected_yunet(original: NDArray[np.uint8], published: NDArray[np.uint8], quad: Quad) -> bool | None:
    from visard_evaluation.second_detector import look

    before = look(original, quad)
    if not before:
        return None
    return any(_iou(before[0][0], box) >= _SAME_PLACE_IOU for box, _ in look(published, quad))


def _both(genders: Sequence[Gender]) -> tuple[Gender, Gender]:
    return genders[0], genders[1]


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two (left, top, right, bottom) boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    small = Image.fromarray(image).resize((_PICTURE_SIZE, _PICTURE_SIZE), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
