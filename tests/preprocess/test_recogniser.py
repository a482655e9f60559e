"""dlib's recogniser in onnxruntime: the graph is dlib's, and so are the descriptors."""

from __future__ import annotations

import dlib
import numpy as np
import onnx
import pytest

from visard_errors import CheckpointError
from visard_preprocess.align import finder, installed_model
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_preprocess.recogniser import CHIP_PADDING, CHIP_SIZE, GRAPH, WEIGHTS, describe
from visard_testing.recogniser_graph import recogniser_graph


@pytest.fixture(scope="module")
def chips(astronaut):
    """A face, the same in the dark and in noise, and none at all: more than are described at once."""
    photo = read_photo(astronaut)
    aligned = crop(photo, finder().find(photo)[0].quad)
    points = [dlib.point(int(x), int(y)) for x, y in finder().landmarks(aligned)]
    shape = dlib.full_object_detection(dlib.rectangle(108, 148, 411, 451), points)
    chip = dlib.get_face_chip(aligned, shape, CHIP_SIZE, CHIP_PADDING)
    random = np.random.default_rng(0)
    noisy = [np.clip(chip + random.normal(0, sigma, chip.shape), 0, 255).astype(np.uint8) for sigma in (5, 20, 60)]
    return [chip, chip[:, ::-1].copy(), chip // 16, 255 - chip, *noisy, np.zeros_like(chip), np.full_like(chip, 255)]


def test_descriptors_are_those_that_dlib_computes(chips):
    recogniser = dlib.face_recognition_model_v1(str(installed_model(WEIGHTS)))
    reference = np.array(recogniser.compute_face_descriptor(chips))
    described = describe(chips, installed_model(WEIGHTS))
    assert described.dtype == np.float64
    np.testing.assert_allclose(described, reference, atol=1e-5)  # what tells people apart is 0.6
    assert np.linalg.norm(described[0] - described[3]) > 0.1


def test_the_shipped_graph_is_the_one_that_is_written_anew():
    assert onnx.load(GRAPH, load_external_data=False) == recogniser_graph(installed_model(WEIGHTS).read_bytes())


def test_of_no_face_there_is_no_descriptor():
    assert describe([], installed_model(WEIGHTS)).shape == (0, 128)


def test_another_file_of_weights_is_refused(chips, tmp_path):
    other = tmp_path / WEIGHTS
    with pytest.raises(CheckpointError, match="install face_recognition_models"):
        describe(chips, other)
    weights = bytearray(installed_model(WEIGHTS).read_bytes())
    weights[-1000] ^= 1
    other.write_bytes(weights)
    with pytest.raises(CheckpointError, match="not dlib's published recogniser"):
        describe(chips, other)
