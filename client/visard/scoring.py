"""How similar a result still is to the face it replaces.

Works on aligned crops, (512, 512, 3) uint8 RGB on both sides. It knows nothing about servers or detectors: the face
descriptors that `identity_distance` compares come from `visard_preprocess.align`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAME_PERSON_BELOW = 0.6  # dlib's own threshold for its 128-d descriptors


def similarity_percent(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8]) -> float:
    """Published similarity, for comparison with the published 61.34 % and 61.47 %.

    Cosine of the flattened generator input (range −1..1) with the flattened output (range 0..255), as
    (cos + 1)/2 · 100. The two sides have *different ranges*, so an unchanged face does not score 100; the formula is
    kept for parity. `pixel_cosine` compares like with like.

    Returns:
        0..100; 50 where one side is all zero.
    """
    return (_cosine(_unit_range(aligned), swapped.astype(np.float64)) + 1.0) / 2.0 * 100.0


def pixel_cosine(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8]) -> float:
    """Cosine of the two flattened images, both in −1..1: 1 for an unchanged face, −1 for its negative."""
    return _cosine(_unit_range(aligned), _unit_range(swapped))


def identity_distance(descriptor: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Euclidean distance of two dlib face descriptors (128,); below `SAME_PERSON_BELOW` counts as the same person."""
    return float(np.linalg.norm(descriptor - other))


def _unit_range(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return image / 127.5 - 1.0


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a.ravel(), b.ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
