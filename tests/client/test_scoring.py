"""Scores against formulas written out in another way."""

import numpy as np
import pytest

from visard import scoring


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)


def test_similarity_percent_is_the_published_formula(pair):
    aligned, swapped = pair
    x = [value / 127.5 - 1 for value in aligned.ravel().tolist()]
    y = [float(value) for value in swapped.ravel().tolist()]
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    cosine = dot / (sum(a * a for a in x) ** 0.5 * sum(b * b for b in y) ** 0.5)
    assert scoring.similarity(aligned, swapped)[0] == pytest.approx((cosine + 1) / 2 * 100, abs=1e-9)


def test_similarity_percent_of_an_unchanged_face_is_not_100(pair):
    assert scoring.similarity(pair[0], pair[0])[0] < 99  # the two sides have different ranges: kept for parity


def test_pixel_cosine_spans_minus_one_to_one(pair):
    assert scoring.similarity(pair[0], pair[0])[1] == pytest.approx(1.0)
    assert scoring.similarity(pair[0], 255 - pair[0])[1] == pytest.approx(-1.0)
    assert abs(scoring.similarity(*pair)[1]) < 0.01  # independent noise is orthogonal


def test_black_result_has_a_score(pair):
    black = np.zeros_like(pair[0])
    assert scoring.similarity(pair[0], black) == (50.0, pytest.approx(-pair[0].mean() / 127.5 + 1, abs=1))


def test_identity_distance_is_euclidean():
    a, b = np.zeros(128), np.zeros(128)
    b[:2] = 3.0, 4.0
    assert scoring.identity_distance(a, b) == 5.0
