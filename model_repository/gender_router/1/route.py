"""Decides which generator draws which faces: the whole decision, free of Triton and of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

GENERATORS = ("generator_to_male", "generator_to_female")  # by the face's own apparent gender: female, male


def route(gender: NDArray[Any]) -> dict[str, NDArray[np.intp]]:
    """Group the faces of one request by the generator of the other apparent gender.

    Args:
        gender: (N, 2) float probabilities (female, male), one row per face. A tie counts as female.

    Returns:
        Generator → ascending indices of its rows. Every row is in exactly one group and no group is empty.

    Raises:
        ValueError: no rows, another shape, or a value outside 0..1 (NaN included): a face whose gender is not known
            must not be guessed.
    """
    if gender.ndim != 2 or gender.shape[1] != 2 or not len(gender):
        raise ValueError(f"gender must be (N, 2) probabilities (female, male), got shape {list(gender.shape)}")
    if not ((gender >= 0) & (gender <= 1)).all():
        raise ValueError("gender holds a value that is no probability (0..1): check the classifier's weights")
    is_male = gender[:, 1] > gender[:, 0]
    groups = {GENERATORS[own]: np.flatnonzero(is_male == own) for own in (0, 1)}
    return {generator: rows for generator, rows in groups.items() if len(rows)}
