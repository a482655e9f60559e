"""Photos that were anonymised before, as `visard folder SRC DST` leaves them: originals and results by one name.

They come as the same outcomes that a client yields, so that the rest of the evaluation treats both in the same way. The
classifier of a server judges both sides; that each face was meant to become the opposite of its apparent gender is
assumed.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from visard import scoring
from visard.result import Anonymized, ApparentGender, FaceResult, Failed, Outcome, Result
from visard_errors import DataError, FaceTooSmall, NoFace, PhotoError, VisardError
from visard_evaluation.measures import check_same_size, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from visard_evaluation.labels import LabelledPhoto
    from visard_evaluation.measures import Swapper


class Withheld(PhotoError):
    """There is no result for a photo: the run did not let it through."""


def compare_many(photos: Sequence[LabelledPhoto], results: Path, swap: Swapper) -> Iterator[Outcome]:
    """Pair photos with their results, several at once, in their order.

    Args:
        photos: the originals.
        results: folder that has each result under its original's name (`LabelledPhoto.name`).
        swap: reaches the classifier.

    Raises:
        DataError: a name leads out of a folder, so that it cannot be found in another one.
    """
    for photo in photos:
        if PurePosixPath(photo.name).is_absolute() or ".." in PurePosixPath(photo.name).parts:
            raise DataError(f"results are found by relative names, but the manifest names '{photo.name}'")

    def work(item: tuple[int, LabelledPhoto]) -> Outcome:
        index, photo = item
        try:
            return Anonymized(index=index, source=photo.path, result=compare(photo, results / photo.name, swap))
        except VisardError as error:
            return Failed(index=index, source=photo.path, error=error)

    return in_order(work, enumerate(photos))


def compare(photo: LabelledPhoto, published: Path, swap: Swapper) -> Result:
    """Describe a finished result as if it had just been made.

    Args:
        photo: the original.
        published: its anonymised file.
        swap: reaches the classifier.

    Raises:
        Withheld: there is no such file.
        PhotoError: a photo cannot be read, they differ in size, or the original has no usable face.
        ServerError: the classifier could not be asked.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.geometry import crop
    from visard_preprocess.photo import read_photo

    if not published.is_file():
        raise Withheld(f"there is no result for '{photo.name}': the run withheld it")
    before, after = read_photo(photo.path), read_photo(published)
    check_same_size(photo, before, after)
    found = finder().find(before)
    if not found:
        raise NoFace(f"no face was found in '{photo.name}', so there is nothing to measure")
    if found[0].too_small:
        raise FaceTooSmall(f"the largest face of '{photo.name}' is too small to be measured")
    aligned, swapped = crop(before, found[0].quad), crop(after, found[0].quad)
    gender, swapped_gender = (
        ApparentGender.from_probabilities(answer.gender)
        for image in (aligned, swapped)
        for answer in swap(image)
        if answer.gender is not None
    )
    similarity_percent, pixel_cosine = scoring.similarity(aligned, swapped)
    face = FaceResult(
        index=0,
        box=found[0].box,
        quad=found[0].quad,
        aligned=aligned,
        swapped=swapped,
        target="male" if gender.label == "female" else "female",
        gender=gender,
        swapped_gender=swapped_gender,
        similarity_percent=similarity_percent,
        pixel_cosine=pixel_cosine,
        identity_distance=None,
    )
    return Result(photo=after, faces=(face,), seconds={})
