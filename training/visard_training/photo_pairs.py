"""Pairs made from photographs: each face moved along the transition until the classifier is certain of both sides.

The counterpart of the seven steps for StyleGAN2, for where no such weights are at hand. In its terms:

    1, 2, 3   photographs of known gender instead of samples      `data.prepare_faces`
    4         class centres and the transition between them       `fit_faces`
    5         the face at several multiples of the transition     `transition.move`, of what `rejection` lets through
    6, 7      classify them, choose the pair or drop it           `make_pair`

One side of every pair is an untouched photograph. This module knows nothing about StyleGAN2 or about training.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from visard_errors import DataError
from visard_preprocess.geometry import CROP_SIZE
from visard_training import photo_filters, warp
from visard_training.data import FACES_FILE, Sample, read_faces
from visard_training.pairs import PairWriter, choose_pair
from visard_training.photo_filters import pose_rejection, rejection
from visard_training.pixels import read_aligned
from visard_training.transition import Transition, fit_transition, move, stages
from visard_training.warp import Shape

Direction = Literal["to_female", "to_male"]
Classify = Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]

FILTERS = (*photo_filters.FILTERS, "certain")
STAGES_FILE = "stages.jpg"

_NUMERIC_SHARE = 0.8  # of a column's values, from which on it counts as a number
_MIN_OF_KIND = 4  # faces, below which a kind gets no coefficient of its own
_MAX_DEVIATION = 2.5
_STAGE_FACES = 8
_MIN_SIZE = 64
_BATCH = 8  # faces handed to each process at a time


@dataclass(frozen=True, kw_only=True)
class PhotoSteps:
    """What decides about the pairs, besides the faces and the classifier.

    Attributes:
        direction: `to_female` moves the photographs of men, `to_male` those of women.
        size: edge of the pairs in pixels; the generators of the demo work at 256.
        multiples: of the transition, rising; the first one that convinces the classifier is kept.
        min_certainty: what the classifier must reach on both sides.
        seed: decides the order of the faces.
    """

    direction: Direction
    size: int = CROP_SIZE
    multiples: tuple[float, ...] = (1.0, 1.3, 1.6)
    min_certainty: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.multiples or list(self.multiples) != sorted(set(self.multiples)) or self.multiples[0] <= 0:
            raise ValueError(f"multiples must rise from above 0, not {self.multiples}")
        if not 0 < self.min_certainty < 1:
            raise ValueError(f"min_certainty must lie between 0 and 1, not {self.min_certainty}")
        if not _MIN_SIZE <= self.size <= CROP_SIZE:
            raise ValueError(f"size must be {_MIN_SIZE}..{CROP_SIZE}, not {self.size}")


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoPair:
    """A photograph and the same face moved to the other gender.

    Attributes:
        photo: (S, S, 3) uint8 RGB, untouched.
        moved: (S, S, 3) uint8 RGB.
        multiple: signed, of the transition.
        p_photo: the classifier's probability that the photo shows the gender it is labelled with.
        p_moved: its probability that the moved face shows the other one.
    """

    photo: NDArray[np.uint8]
    moved: NDArray[np.uint8]
    multiple: float
    p_photo: float
    p_moved: float


def make_photo_pairs(
    caches: Sequence[Path],
    folder: Path,
    classifier: Path,
    steps: PhotoSteps,
    *,
    fit_on: Path,
    n: int | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, int]:
    """Make a folder of pairs from prepared faces; a second call with the same settings goes on where the first ended.

    Faces of split `train` become pairs of split `train`, those of `validation` become `holdout`; faces of `test` are
    not touched. The transition is fitted on split `train` alone.

    Args:
        caches: folders of prepared faces, the photographs to move.
        folder: the pairs; it will hold pictures of people.
        classifier: checkpoint of the gender classifier, which chooses the pairs.
        steps: see there.
        fit_on: folder of prepared faces for the class means: even light and a frontal view matter more than numbers.
        n: stop at this many pairs; by default every face is tried.
        workers: processes; by default one for each core that this process may use.
        console: where the progress bar is drawn.

    Returns:
        How many faces survive each filter.

    Raises:
        DataError: the faces or the folder cannot be used.
        CheckpointError: the classifier cannot be used.
    """
    from visard_export.checkpoints import load_classifier, sha256_of

    judge = load_classifier(classifier)  # here already: what is wrong with it should show before the faces are fitted
    photographed = "male" if steps.direction == "to_female" else "female"
    faces = {
        f"{cache.name}/{sample.path.name}": sample
        for cache in caches
        for sample in read_faces(cache)
        if sample.gender == photographed and sample.split != "test"
    }
    order = sorted(faces, key=lambda source: hashlib.sha256(f"{steps.seed} {source}".encode()).digest())
    transition = fit_faces(read_faces(fit_on), steps.size)
    settings = {"source": "photos", "classifier": judge.sha256, "fit_on": sha256_of(fit_on / FACES_FILE)}
    workers = workers or len(os.sched_getaffinity(0))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        PairWriter(folder, settings=settings | asdict(steps), filters=FILTERS) as writer,
        _mapping(workers, transition, classifier, steps) as mapping,
        Progress(*columns, console=console or Console(stderr=True)) as progress,
    ):
        write_stages(folder / STAGES_FILE, [faces[source] for source in order], transition)
        todo = [source for source in order if source not in writer.done]
        task = progress.add_task("Moving faces", total=len(order), completed=len(order) - len(todo))
        for start in range(0, len(todo), _BATCH * workers):  # not all at once: n may be reached long before the end
            if n is not None and len(writer) >= n:
                break
            some = todo[start : start + _BATCH * workers]
            for source, result in zip(some, mapping([faces[source] for source in some]), strict=True):
                if isinstance(result, str):
                    writer.drop(source, result)
                elif n is None or len(writer) < n:
                    _add(writer, source, faces[source], result)
                progress.advance(task)
        return writer.survival


def fit_faces(samples: Sequence[Sample], size: int) -> Transition:
    """Fit the transition on the faces of split `train`, with whatever else the manifest says about them.

    Raises:
        DataError: the faces are too few or too alike to tell gender from the rest.
    """
    samples = [s for s in samples if s.split == "train" and pose_rejection(s) is None]
    shapes = np.array([_landmarks(sample, size) for sample in samples])
    male = np.array([sample.gender == "male" for sample in samples])
    try:
        return fit_transition(shapes, male, covariates(samples), lambda i: _image(samples[i], size), size)
    except ValueError as error:
        raise DataError(f"the transition cannot be fitted: {error}; give more faces, of both genders") from error


def covariates(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Turn the groups of the manifest into numbers.

    A column of numbers, such as age, is standardised, missing values at its mean; of any other column, such as
    ethnicity or expression, each kind becomes a column of 0 and 1, except for the most frequent kind and the rare ones.

    Returns:
        (N, K) float64.
    """
    columns: list[NDArray[np.float64]] = []
    for name in sorted({name for sample in samples for name in sample.groups}):
        texts = [sample.groups.get(name, "") for sample in samples]
        values = np.array([_number(text) for text in texts])
        known = ~np.isnan(values)
        if known.mean() >= _NUMERIC_SHARE:
            deviation = float(values[known].std()) or 1.0
            standard = (values - values[known].mean()) / deviation
            columns.append(np.where(known, np.clip(standard, -_MAX_DEVIATION, _MAX_DEVIATION), 0.0))
        else:
            kinds = [kind for kind, count in Counter(texts).most_common() if count >= _MIN_OF_KIND]
            columns += [np.array([text == kind for text in texts], np.float64) for kind in kinds[1:]]
    return np.stack(columns, 1) if columns else np.zeros((len(samples), 0))


def make_pair(sample: Sample, transition: Transition, classify: Classify, steps: PhotoSteps) -> PhotoPair | str:
    """Move a face to the other gender until the classifier is certain of both sides.

    Multiples are tried in turn, since the nearest pair is wanted: what `choose_pair` would choose from all of them.

    Args:
        sample: an aligned face.
        transition: between the class means.
        classify: gives (N, 2) probabilities (female, male) for (N, S, S, 3) uint8 RGB.
        steps: the multiples, and what the classifier must reach.

    Returns:
        The pair, or the name of the filter that dropped the face.
    """
    image, landmarks = _image(sample, transition.size), _landmarks(sample, transition.size)
    if (reason := rejection(sample, image, landmarks, transition)) is not None:
        return reason
    to_male = sample.gender == "female"
    p_photo = classify(image[None])[0]
    if p_photo[0 if to_male else 1] < steps.min_certainty:
        return "certain"
    for multiple in steps.multiples:
        signed = multiple if to_male else -multiple
        moved = move(image, landmarks, transition, signed)
        p_moved = classify(moved[None])[0]
        probabilities = np.stack([p_photo, p_moved] if to_male else [p_moved, p_photo])
        if choose_pair(probabilities, steps.min_certainty) is not None:
            own, other = (0, 1) if to_male else (1, 0)
            return PhotoPair(
                photo=image, moved=moved, multiple=signed, p_photo=float(p_photo[own]), p_moved=float(p_moved[other])
            )
    return "certain"


def write_stages(path: Path, samples: Sequence[Sample], transition: Transition) -> None:
    """Show what every stage does to a few faces: a row for each face, a column for each stage."""
    rows = []
    for sample in itertools.islice((s for s in samples if pose_rejection(s) is None), _STAGE_FACES):
        image, landmarks = _image(sample, transition.size), _landmarks(sample, transition.size)
        multiple = 1.0 if sample.gender == "female" else -1.0
        rows.append(np.hstack([picture for _, picture in stages(image, landmarks, transition, multiple)]))
    if rows:
        Image.fromarray(np.vstack(rows)).save(path, quality=95)


def load_classify(checkpoint: Path) -> Classify:
    """Load the gender classifier, as it is served, for pictures of any size.

    Raises:
        CheckpointError: the file is no classifier.
    """
    import torch

    from visard_export.checkpoints import load_classifier
    from visard_export.graphs import build_graph

    graph = build_graph(load_classifier(checkpoint).network()).eval()

    def classify(images: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        full = np.stack([cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_CUBIC) for image in images])
        with torch.inference_mode():
            probabilities: NDArray[np.floating[Any]] = graph(torch.from_numpy(full)).numpy()
        return probabilities

    return classify


_Result = PhotoPair | str
_maker: Callable[[Sample], _Result]


@contextmanager
def _mapping(
    workers: int, transition: Transition, classifier: Path, steps: PhotoSteps
) -> Iterator[Callable[[Sequence[Sample]], Iterable[_Result]]]:
    """Give what makes pairs of many faces, in their order, on so many processes; a single one is this process."""
    if workers == 1:
        make = partial(make_pair, transition=transition, classify=load_classify(classifier), steps=steps)
        yield partial(map, make)
        return
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # torch does not survive a fork
        initializer=_start_worker,
        initargs=(transition, classifier, steps),
    ) as pool:
        yield partial(pool.map, _work)


def _start_worker(transition: Transition, classifier: Path, steps: PhotoSteps) -> None:
    """Load once per process what every face needs; one thread each, since there is a process for every core."""
    import torch

    global _maker
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _maker = partial(make_pair, transition=transition, classify=load_classify(classifier), steps=steps)


def _work(sample: Sample) -> _Result:
    return _maker(sample)


def _add(writer: PairWriter, source: str, sample: Sample, pair: PhotoPair) -> None:
    split: Literal["train", "holdout"] = "train" if sample.split == "train" else "holdout"
    if sample.gender == "female":
        writer.add(
            pair.photo,
            pair.moved,
            source=source,
            female_multiple=0.0,
            male_multiple=pair.multiple,
            p_female=pair.p_photo,
            p_male=pair.p_moved,
            split=split,
            real="female",
        )
    else:
        writer.add(
            pair.moved,
            pair.photo,
            source=source,
            female_multiple=pair.multiple,
            male_multiple=0.0,
            p_female=pair.p_moved,
            p_male=pair.p_photo,
            split=split,
            real="male",
        )


def _image(sample: Sample, size: int) -> NDArray[np.uint8]:
    face = read_aligned(sample)
    return face if size == CROP_SIZE else cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _landmarks(sample: Sample, size: int) -> Shape:
    return warp.resized(sample.landmarks.astype(np.float64), CROP_SIZE, size)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
