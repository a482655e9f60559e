"""Attackers who learn, links between photos, and distances between sets, against truths that were planted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.spatial.distance import cdist

from visard_evaluation.folds import FEWEST_PEOPLE, FOLDS, folds_of
from visard_evaluation.learned import learn, search_learned
from visard_evaluation.naturalness import kernel_distance, reference_distance
from visard_evaluation.search import link, rank1
from visard_testing.people_photos import PEOPLE

PAIRS = [f"person {index // 2}" for index in range(200)]  # two photos of each of a hundred


# --- folds ---


def test_folds_never_share_a_person_and_follow_names_alone():
    folds = folds_of(PAIRS)
    by_person = {person: {fold for fold, who in zip(folds, PAIRS, strict=True) if who == person} for person in PAIRS}
    assert all(len(each) == 1 for each in by_person.values())
    assert np.bincount(folds).tolist() == [200 // FOLDS] * FOLDS
    assert FOLDS >= 5
    shuffled = np.random.default_rng(0).permutation(len(PAIRS))
    assert np.array_equal(folds_of([PAIRS[index] for index in shuffled]), folds[shuffled])


def test_too_few_people_have_no_folds():
    few = [f"person {index}" for index in range(FEWEST_PEOPLE - 1)]
    assert folds_of(few * 3) is None
    assert search_learned(np.eye(len(few)), np.eye(len(few)), few) is None
    assert folds_of([*few, "one more"]) is not None


# --- the attacker who learns a map ---


def faces(rng, noise=0.05, dimensions=16):
    """Clear descriptors of a hundred people, two alike of each."""
    return np.repeat(rng.normal(size=(100, dimensions)), 2, axis=0) + rng.normal(size=(200, dimensions)) * noise


def test_a_planted_linear_map_is_undone():
    rng = np.random.default_rng(0)
    clear = faces(rng)
    hidden = clear @ rng.normal(size=(16, 16)) * 3 + rng.normal(size=16)
    assert np.mean(rank1(hidden, clear, PAIRS)[0]) < 0.2
    assert np.mean(search_learned(hidden, clear, PAIRS)) > 0.97


def test_nothing_is_learned_from_noise():
    """Descriptors that have nothing to do with the face: found no more often than by guessing."""
    rng = np.random.default_rng(1)
    hits = search_learned(rng.normal(size=(200, 16)), faces(rng), PAIRS)
    assert np.mean(hits) < 0.04  # guessing: 1 in 100


def test_what_is_learned_does_not_come_from_the_person_searched_for():
    """One map for everybody, and for one person another: learned from others, it cannot find that one."""
    rng = np.random.default_rng(2)
    clear = faces(rng)
    turn = rng.normal(size=(16, 16))
    hidden = clear @ turn
    hidden[:2] = clear[:2] @ rng.normal(size=(16, 16))
    hits = search_learned(hidden, clear, PAIRS)
    assert not any(hits[:2])
    assert np.mean(hits[2:]) > 0.97


def test_an_unchanged_descriptor_needs_no_learning():
    """With a dozen people and many dimensions the attacker falls back on what it is given."""
    rng = np.random.default_rng(3)
    people = [f"person {index}" for index in range(12)]
    clear = rng.normal(size=(12, 128))
    assert np.mean(search_learned(clear + 0.1 * rng.normal(size=clear.shape), clear, people)) == 1


def test_few_people_teach_little_but_never_hide_what_a_plain_search_finds():
    """Sixteen people and many dimensions, as in a small data set: mixtures of the known would find nobody."""
    rng = np.random.default_rng(8)
    people = [f"person {index // 2}" for index in range(32)]
    clear = np.repeat(rng.normal(size=(16, 128)), 2, axis=0) + 0.2 * rng.normal(size=(32, 128))
    hidden = 3 + 0.25 * clear + rng.normal(size=clear.shape)
    plain = np.mean(rank1(hidden - hidden.mean(axis=0), clear - clear.mean(axis=0), people)[0])
    assert plain > 0.2
    assert np.mean(search_learned(hidden, clear, people)) >= plain - 0.1


def test_ridge_is_the_least_squares_of_a_longer_system():
    """The weights are those of scipy's plain least squares with a row for each dimension's penalty."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(60, 5))
    found = learn(x, y, np.array([str(index) for index in range(60)]), np.arange(60) % 5)
    centred, target = x - x.mean(axis=0), y - y.mean(axis=0) - found.kept * (x - x.mean(axis=0))
    squares = np.linalg.svd(centred, compute_uv=False) ** 2
    references = [
        np.linalg.lstsq(
            np.vstack([centred, np.sqrt(penalty * squares.mean()) * np.eye(5)]),
            np.vstack([target, np.zeros((5, 5))]),
            rcond=None,
        )[0]
        for penalty in (1e9, *10.0 ** np.arange(-3, 4))
    ]
    assert min(np.abs(reference - found.weights).max() for reference in references) < 1e-9


# --- links ---


def test_links_against_a_table():
    descriptors = np.array([[0.0], [1], [5], [5.5], [9]])
    assert link(descriptors, ["a", "a", "b", "c", "b"]) == (True, True, False, None, False)
    # Against scipy's full matrix on random points.
    rng = np.random.default_rng(5)
    points, people = rng.normal(size=(40, 3)), [f"{index % 20}" for index in range(40)]
    distances = cdist(points, points) + np.diag([np.inf] * 40)
    assert link(points, people) == tuple(
        people[int(nearest)] == person for nearest, person in zip(distances.argmin(axis=1), people, strict=True)
    )


# --- distance between sets ---


def unbiased_mmd(x, y):
    """Equation 3 of Gretton et al. (2012), pair by pair."""
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    return (
        sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        + sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        - 2 * sum(kernel(x[i], y[j]) for i in range(n) for j in range(m) if i != j) / (n * (m - 1))
    )


def test_kernel_distance_against_the_sums_of_its_definition():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(15, 4)), rng.normal(size=(15, 4)) + 0.5
    people = [str(index) for index in range(15)]
    found = kernel_distance(x, y, people)
    assert found.value == pytest.approx(unbiased_mmd(x, y), abs=1e-4)
    without = [unbiased_mmd(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(15)]
    error = np.sqrt(14 / 15 * np.square(np.array(without) - np.mean(without)).sum())
    assert (found.high - found.low) / 2 == pytest.approx(2.1448 * error, rel=1e-3)  # Student, 14 degrees of freedom


def test_a_set_lies_at_no_distance_from_itself_and_few_people_give_none():
    rng = np.random.default_rng(7)
    x, people = rng.normal(size=(200, 8)), PAIRS
    assert kernel_distance(x, x, people).value == 0
    halves = reference_distance(x, people)
    assert halves.low < 0 < halves.high
    assert abs(halves.value) < 0.05
    shifted = kernel_distance(x, x + 0.5, people)
    assert shifted.low > halves.high
    assert kernel_distance(x[:18], x[:18], people[:18]).value is None


def test_features_see_blur():
    """Sharp portraits lie at no distance from themselves, and away from themselves blurred."""
    from visard_evaluation.perception import Perception

    perception = Perception()
    portraits = [Image.open(path).convert("RGB") for path in sorted(PEOPLE.glob("*.jpg"))]

    def features(blur):
        pictures = [np.asarray(picture.filter(ImageFilter.GaussianBlur(blur))) for picture in portraits]
        return perception.features(np.stack(pictures))

    people = [str(index) for index in range(len(portraits))]
    sharp = features(0)
    assert sharp.shape == (12, 1280)
    assert kernel_distance(sharp, sharp, people).value == 0
    assert kernel_distance(sharp, features(4), people).low > 0
