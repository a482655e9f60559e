"""How similar a result still is to the face it replaces.

Works on aligned crops, (512, 512, 3) uint8 RGB on both sides. The face descriptors that `identity_distance` compares
come from `visard_preprocess.align`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SAME_PERSON_BELOW = 0.6  # dlib's own threshold for its 128-d descriptors

_MIDDLE = 127.5  # the grey level that becomes 0 in the generator's input, x/127.5 − 1
_ROW = 256  # 256·255² < 2²⁴: the sums of a row's products are whole numbers that float32 holds exactly
_PART = 2**15  # values that are looked at together: they stay in the processor's caches as float32


def similarity(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8]) -> tuple[float, float]:
    """Both similarities of a face and its swap.

    Returns:
        `similarity_percent`: the published one, for comparison with the published 61.34 % and 61.47 %: cosine of the
            flattened generator input (range −1..1) with the flattened output (range 0..255), as (cos + 1)/2 · 100.
            0..100; 50 where one side is all zero. The two sides have *different ranges*, so an unchanged face does not
            score 100; the formula is kept for parity.
        `pixel_cosine`: compares like with like: cosine of the two flattened images, both in −1..1. 1 for an unchanged
            face, −1 for its negative.
    """
    n, sums = aligned.size, np.zeros(5)
    for start in range(0, n, _PART):
        parts = (image.reshape(-1)[start : start + _PART] for image in (aligned, swapped))
        a, b = (part.reshape(-1, _ROW).astype(np.float32) for part in parts)
        sums += [_total(a.sum(1)), _total(b.sum(1)), _dot(a, b), _dot(a, a), _dot(b, b)]
    sum_a, sum_b, dot_ab, square_a, square_b = map(float, sums)
    square_a += n * _MIDDLE**2 - 2 * _MIDDLE * sum_a

    def cosine(origin: float) -> float:
        """Cosine of `aligned` − 127.5 with `swapped` − `origin`; their scale does not matter to it."""
        dot = dot_ab - origin * sum_a - _MIDDLE * sum_b + n * origin * _MIDDLE
        squares = square_a * (square_b - 2 * origin * sum_b + n * origin**2)
        return dot / math.sqrt(squares) if squares else 0.0

    return (cosine(0.0) + 1.0) / 2.0 * 100.0, cosine(_MIDDLE)


def identity_distance(descriptor: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Euclidean distance of two dlib face descriptors (128,); below `SAME_PERSON_BELOW` counts as the same person."""
    return float(np.linalg.norm(descriptor - other))


def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return _total(np.einsum("ij,ij->i", a, b))


def _total(rows: NDArray[np.float32]) -> float:
    return float(rows.sum(dtype=np.float64))
