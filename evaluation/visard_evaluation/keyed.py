"""Anonymises photos once more with a key for each person, to see how well such photos can be linked."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import TYPE_CHECKING

from visard.options import Options
from visard_errors import PhotoError, ServerError
from visard_evaluation.measures import in_order
from visard_evaluation.recognisers import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from visard.blocking import Client
    from visard_evaluation.measures import Measures
    from visard_evaluation.recognisers import Recogniser

    Keyed = Mapping[str, NDArray[np.float64]] | None


def describe_keyed(
    measures: Sequence[Measures], people: Sequence[str], client: Client, recognisers: Sequence[Recogniser]
) -> Iterator[Keyed]:
    """Anonymise the photos of people with several once more, with one key for each person, and describe the results.

    Args:
        measures: of all photos.
        people: who is in each.
        client: anonymises.
        recognisers: who describes.

    Yields:
        A descriptor by the recogniser's name for each photo, in their order; None where its person has no other photo,
        or it could not be anonymised this time.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.geometry import crop

    counts, salt = Counter(people), secrets.token_hex(8)  # other personas in every run: no run is a lucky draw

    def work(item: tuple[Measures, str]) -> Keyed:
        each, person = item
        if counts[person] < 2:
            return None
        try:
            options = Options(faces="largest", unswapped="show", identity=False, persona_key=f"{salt} {person}")
            result = client.anonymize(each.photo.path, options)
        except (PhotoError, ServerError):
            return None
        if not result.faces:  # found a little differently than the first time, and not swapped
            return None
        assert result.photo is not None  # noqa: S101 - the default output
        exposed = crop(result.photo, result.faces[0].quad)
        view = View(aligned=exposed, landmarks=finder().landmarks(exposed))
        return {recogniser.name: recogniser.describe([view])[0] for recogniser in recognisers}

    return in_order(work, zip(measures, people, strict=True))
