"""The router's decision by itself; what it does with pixels is in test_server.py, through the real server."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visard_testing.tiny_models import MODEL_REPOSITORY

_spec = importlib.util.spec_from_file_location("route", MODEL_REPOSITORY / "gender_router" / "1" / "route.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
route = _module.route


def rows(groups):
    return {generator: indices.tolist() for generator, indices in groups.items()}


def test_female_goes_to_male_and_male_to_female():
    gender = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], np.float32)
    assert rows(route(gender)) == {"generator_to_male": [0, 2], "generator_to_female": [1]}


def test_one_direction_is_one_group():
    assert rows(route(np.array([[0.1, 0.9], [0.4, 0.6]]))) == {"generator_to_female": [0, 1]}


def test_a_tie_counts_as_female():
    assert rows(route(np.array([[0.5, 0.5]]))) == {"generator_to_male": [0]}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=64))
def test_every_face_is_routed_once_and_away_from_its_own_gender(male):
    gender = np.array([[1 - p, p] for p in male], np.float32)
    groups = rows(route(gender))
    assert sorted(itertools.chain(*groups.values())) == list(range(len(male)))
    assert all(groups.values())
    for generator, indices in groups.items():
        own = gender[indices, 1 if generator == "generator_to_female" else 0]
        assert (own >= 0.5 - 1e-6).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.1])
def test_a_value_that_is_no_probability_is_refused(value):
    gender = np.array([[0.9, 0.1], [value, 0.5]], np.float32)
    with pytest.raises(ValueError, match="no probability"):
        route(gender)


@pytest.mark.parametrize("shape", [(2,), (0, 2), (3, 1), (3, 3), (1, 2, 2)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        route(np.full(shape, 0.5, np.float32))
