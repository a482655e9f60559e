"""The parts of the evaluation against references that were worked out by other means."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from visard import CheckpointError
from visard_evaluation.drift import (
    _HEAD,
    _POSE_POINTS,
    drift_around_face,
    drift_beyond_crops,
    head_pose,
    landmark_drift_percent,
)
from visard_evaluation.estimates import difference, mean, median, share
from visard_evaluation.five_points import five_points, place_five_points, similarity
from visard_evaluation.labels import LabelledPhoto
from visard_evaluation.measures import in_order
from visard_evaluation.painting import face_mask, paint_over
from visard_evaluation.recognisers import (
    DlibRecogniser,
    OnnxRecogniser,
    View,
    build_recognisers,
    parse_recogniser,
)
from visard_evaluation.search import people_of, rank1
from visard_preprocess.geometry import Quad, crop
from visard_preprocess.photo import read_photo
from visard_testing.tiny_recogniser import mean_colour_recogniser

ARCFACE = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]


@pytest.fixture(scope="module")
def face(astronaut):
    """The astronaut's aligned face and its landmarks."""
    from visard_preprocess.align import finder

    photo = read_photo(astronaut)
    aligned = crop(photo, finder().find(photo)[0].quad)
    return aligned, finder().landmarks(aligned)


def view(face):
    return View(aligned=face[0], landmarks=face[1])


# --- intervals ---


@pytest.mark.parametrize(("hits", "n"), [(7, 10), (0, 10), (53, 100), (32, 32)])
def test_wilson_against_its_formula(hits, n):
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    estimate = share([True] * hits + [False] * (n - hits))
    assert estimate.value == pytest.approx(p)
    assert (estimate.low, estimate.high) == pytest.approx((middle - half, middle + half), abs=1e-4)


def test_wilson_against_published_values():
    estimate = share([True] * 81 + [False] * (263 - 81))  # Newcombe (1998), table I
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert share([]).value is share([]).low is None


def test_median_lies_between_order_statistics():
    estimate = median([9, 1, 4, 2, 6, 5])
    assert (estimate.value, estimate.low, estimate.high) == (4.5, 1, 9)  # six coins: all alike with p = 2/64 < 5 %
    assert median([3, 1, 2]).low is None
    assert median([]).value is None


def test_mean_and_student():
    estimate = mean([1, 2, 3, 4, 5])
    half = 2.7764 * math.sqrt(2.5 / 5)  # t for 4 degrees of freedom
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    assert mean([0, 0, 0, 0, 1]).low == 0  # nothing that is averaged can be negative
    assert mean([1, 9]).low is None
    assert mean([]).value is None


def test_difference_covers_the_truth_as_often_as_it_says():
    """Pairs drawn with known shares: the interval holds their difference in about 95 of 100 samples."""
    rng = np.random.default_rng(0)
    for both, first, second, n in ((0.1, 0.3, 0.1, 32), (0.6, 0.3, 0.05, 32), (0.05, 0.05, 0.05, 100)):
        shares = [both, first, second, 1 - both - first - second]
        covered = 0
        for counts in rng.multinomial(n, shares, size=400):
            hits, control = (np.repeat(flags, counts) for flags in ([1, 1, 0, 0], [1, 0, 1, 0]))
            found = difference(list(hits), list(control))
            assert found.value == pytest.approx(hits.mean() - control.mean(), abs=1e-4)
            covered += found.low <= first - second <= found.high
        assert 0.92 <= covered / 400 <= 0.99, shares


def test_difference_of_what_agrees_is_none_but_not_certain():
    found = difference([True] * 10, [True] * 10)
    assert found.value == 0
    assert found.low < 0 < found.high
    assert difference([], []).value is None
    assert difference([True] * 32, [False] * 32).low > 0.8


# --- retrieval ---


def test_rank1_against_a_table():
    gallery = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    probes = np.array([[1.0, 1], [0, 9], [0, 11], [6, 6]])  # nearest: 0, 2, 2, 3
    hits, distances = rank1(probes, gallery, ["a", "b", "c", "d"])
    assert hits == [True, False, True, True]
    assert distances == pytest.approx([math.sqrt(2), math.sqrt(181), 1, math.sqrt(32)])
    assert rank1(probes, gallery, ["a", "b", "b", "d"])[0] == [True, True, True, True]  # photos 1 and 2: one person


def test_rank1_of_constant_descriptors_is_chance():
    hits, _ = rank1(np.ones((2500, 4)), np.ones((2500, 4)), range(2500))
    assert sum(hits) == 1


def test_people_without_names_are_different():
    class Named:
        def __init__(self, person):
            self.photo = LabelledPhoto("x", person=person)

    people = people_of([Named("ann"), Named(None), Named("ann"), Named(None), Named("photo 1")])
    assert people[0] == people[2]
    assert len(set(people)) == 4


# --- recognisers ---


def test_five_points_arrive_at_the_template(face):
    """Dots painted at a turned face's five points are found where ArcFace expects them."""
    landmarks = (face[1] - 256) @ np.array([[0.9, 0.3], [-0.3, 0.9]]) + 250
    picture = np.zeros((512, 512, 3), np.uint8)
    y, x = np.mgrid[:512, :512]
    for column, row in five_points(landmarks):
        picture[(x - column) ** 2 + (y - row) ** 2 <= 36] = 255
    turn, shift = similarity(five_points(landmarks), np.array(ARCFACE))
    for size in (112, 160):
        placed = place_five_points(picture, landmarks, size)[..., 0].astype(float)
        assert placed.shape == (size, size)
        rows, columns = np.mgrid[:size, :size]
        for point, template in zip(five_points(landmarks), ARCFACE, strict=True):
            z = turn * complex(*point) + shift
            wanted = np.array([z.real, z.imag])
            assert np.linalg.norm(wanted - template) < 10  # the face is not the template, but near
            wanted = (wanted + 0.5) * size / 112 - 0.5
            near = placed * (np.hypot(columns - wanted[0], rows - wanted[1]) < 5)
            centre = np.array([(near * columns).sum(), (near * rows).sum()]) / near.sum()
            assert np.linalg.norm(centre - wanted) < 0.25


def test_similarity_is_exact_for_similar_points():
    points = np.array(ARCFACE)
    turned = points @ np.array([[1.2, 0.5], [-0.5, 1.2]]) + [7, -3]  # row vectors: x' = 1.2x − 0.5y, y' = 0.5x + 1.2y
    assert similarity(points, turned) == pytest.approx((1.2 + 0.5j, 7 - 3j))


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("kind", ["FLOAT", "UINT8"])
def test_onnx_recogniser_against_numpy(face, tmp_path, channels_first, kind):
    file = mean_colour_recogniser(tmp_path / "m.onnx", size=112, channels_first=channels_first, kind=kind)
    recogniser = OnnxRecogniser("mean", file, input_size=112, threshold=0.5)
    columns = place_five_points(*face).mean(axis=0)
    columns = (columns.T if channels_first else columns).ravel()
    expected = columns / 127.5 - 1 if kind == "FLOAT" else columns
    assert recogniser.describe([view(face)])[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-4)


def test_unusable_recognisers(face, tmp_path):
    file = mean_colour_recogniser(tmp_path / "m.onnx", size=112)
    with pytest.raises(CheckpointError, match=r"160×160.*112"):
        OnnxRecogniser("m", file, input_size=160, threshold=1)
    with pytest.raises(CheckpointError, match=r"gone\.onnx"):
        build_recognisers(["gone=gone.onnx:112:1"])
    (tmp_path / "n.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"n\.onnx"):
        OnnxRecogniser("n", tmp_path / "n.onnx", input_size=112, threshold=1)
    grey = np.full((512, 512, 3), 0, np.uint8)
    dark = OnnxRecogniser(
        "d", mean_colour_recogniser(tmp_path / "d.onnx", size=112, kind="UINT8"), input_size=112, threshold=1
    )
    with pytest.raises(CheckpointError, match="descriptor"):  # a length of zero has no direction
        dark.describe([View(aligned=grey, landmarks=face[1])])


def test_recogniser_syntax(tmp_path):
    name, file, size, threshold, raw = parse_recogniser("arcface=C:/models/w600k_r50.onnx:112:1.1")
    assert (name, file.as_posix(), size, threshold, raw) == ("arcface", "C:/models/w600k_r50.onnx", 112, 1.1, False)
    assert parse_recogniser("a=f.onnx:112:1.1:raw")[1:] == (Path("f.onnx"), 112, 1.1, True)
    for text in ("arcface", "=f:112:1", "a=f:112", "a=:112:1", "a=f:x:1", "a=f:112:5", "a=f:1:1", "a b=f:112:1"):
        with pytest.raises(ValueError, match="NAME=FILE"):
            parse_recogniser(text)


def test_dlib_recogniser_is_the_finders(face):
    from visard_preprocess.align import finder

    tight, whole = DlibRecogniser().describe([view(face), View(aligned=face[0], landmarks=None)])
    assert tight == pytest.approx(finder().descriptor(face[0]), abs=1e-5)
    assert 0.2 < np.linalg.norm(tight - whole) < 1.2


def test_pixels_as_they_are(face, tmp_path):
    file = mean_colour_recogniser(tmp_path / "m.onnx", size=112)
    raw = OnnxRecogniser("mean", file, input_size=112, threshold=0.5, raw=True)
    expected = place_five_points(*face).mean(axis=0).T.ravel()
    assert raw.describe([view(face)])[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-4)
    whole = face[0].reshape(512, 512 // 4, 4, 3).mean(axis=(0, 2))  # columns of a quarter of the resolution
    seen = OnnxRecogniser(
        "m", mean_colour_recogniser(tmp_path / "w.onnx", size=128), input_size=128, threshold=1, raw=True
    ).describe([View(aligned=face[0], landmarks=None)])[0]
    assert seen == pytest.approx(whole.T.ravel() / np.linalg.norm(whole), abs=1e-3)


def test_one_at_a_time_or_all_at_once(face, tmp_path):
    """Files for one picture alone give the same descriptors as those that take many."""
    views = [view(face), View(aligned=face[0][::-1].copy(), landmarks=face[1])]
    many, single = (
        OnnxRecogniser(
            "m", mean_colour_recogniser(tmp_path / f"{n}.onnx", size=112, batch=n), input_size=112, threshold=1
        ).describe(views)
        for n in ("N", 1)
    )
    assert np.array_equal(many, single)
    assert many.shape == (2, 3 * 112)
    assert not np.allclose(many[0], many[1])


# --- painting ---


def test_painting_leaves_no_face_and_all_else(face):
    from visard_preprocess.align import finder

    aligned, landmarks = face
    painted, mask = paint_over(aligned, landmarks), face_mask(landmarks, 512)
    assert np.array_equal(painted[~mask], aligned[~mask])
    assert len(np.unique(painted[mask], axis=0)) == 1
    inner = np.rint(landmarks[17:]).astype(int)  # brows, eyes, nose, mouth
    assert mask[inner[:, 1], inner[:, 0]].all()
    assert 0.15 < mask.mean() < 0.4
    assert finder().find(aligned)
    assert not finder().find(painted)


# --- drift ---


def test_known_translation_is_known_drift(face):
    landmarks = face[1]
    eyes = np.linalg.norm(landmarks[36:42].mean(axis=0) - landmarks[42:48].mean(axis=0))
    assert landmark_drift_percent(landmarks, landmarks) == 0
    assert landmark_drift_percent(landmarks, landmarks + np.array([3, 4])) == pytest.approx(500 / eyes)
    assert head_pose(landmarks).drift(head_pose(landmarks + np.array([3, 4]))).pitch == pytest.approx(0, abs=1e-9)


def test_known_rotation_is_known_roll(face):
    for degrees in (10, -25):
        turn = np.radians(degrees)
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        drift = head_pose(face[1]).drift(head_pose((face[1] - 256) @ matrix * 1.7 + 256))
        assert drift.roll == pytest.approx(abs(degrees))
        assert (drift.yaw, drift.pitch) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -15, 10), (-30, 5, -40), (3, 25, 170)])
def test_pose_of_a_turned_head(angles):
    """The generic head, turned by scipy and projected, has the pose it was turned to."""
    yaw, pitch, roll = angles
    turned = _HEAD @ Rotation.from_euler("ZYX", [roll, yaw, pitch], degrees=True).as_matrix().T
    landmarks = np.zeros((68, 2))
    landmarks[_POSE_POINTS] = turned[:, :2] * 9 + 200
    pose = head_pose(landmarks)
    assert (pose.yaw, pose.pitch, pose.roll) == pytest.approx(angles, abs=1e-6)


def test_angles_wrap_around():
    upright, other = (head_pose(_projected(roll)) for roll in (179, -179))
    assert upright.drift(other).roll == pytest.approx(2)


def test_frontal_face_looks_ahead(face):
    pose = head_pose(face[1])
    assert abs(pose.roll) < 3  # aligned
    assert abs(pose.yaw) < 20


def around(before, after, quad):
    return drift_around_face(crop(before, quad), crop(after, quad), quad, before.shape[:2])


def test_same_photo_does_not_drift(astronaut):
    photo, quad = read_photo(astronaut), Quad(centre=(220.0, 120.0), x_axis=(110.0, 10.0))
    assert around(photo, photo.copy(), quad) == (0, 0)
    assert drift_beyond_crops(photo, photo.copy(), [quad]) == 0


def test_colours_of_known_distance():
    red, green = (np.full((300, 400, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))
    quad = Quad(centre=(200.0, 150.0), x_axis=(80.0, 0.0))
    levels, colour = around(red, green, quad)
    # CIELAB (D65): red (53.24, 80.09, 67.20), green (87.73, −86.18, 83.18)
    assert colour == pytest.approx(math.dist((53.24, 80.09, 67.20), (87.73, -86.18, 83.18)), abs=0.05)
    assert levels == drift_beyond_crops(red, green, [quad]) == 170


def test_the_face_itself_is_not_outside():
    """A change within the face's ellipse is seen by neither measure, one in a corner of the crop by the first alone."""
    photo, quad = np.full((300, 300, 3), 100, np.uint8), Quad(centre=(149.5, 149.5), x_axis=(100.0, 0.0))
    inside, corner, beyond = (photo.copy() for _ in range(3))
    inside[130:190, 120:180] = 200
    corner[60:80, 60:80] = 200
    beyond[:10, :10] = 200
    changed = (inside, corner, beyond)
    assert [around(photo, each, quad)[0] > 0 for each in changed] == [False, True, False]
    assert [drift_beyond_crops(photo, each, [quad]) > 0 for each in changed] == [False, False, True]
    assert drift_beyond_crops(photo, beyond, [quad, Quad(centre=(5.0, 5.0), x_axis=(9.0, 0.0))]) == 0


def test_a_crop_that_fills_the_photo_has_nothing_beyond():
    photo = np.zeros((50, 50, 3), np.uint8)
    assert drift_beyond_crops(photo, photo, [Quad(centre=(25.0, 25.0), x_axis=(60.0, 0.0))]) is None


# --- order ---


def test_in_order_keeps_order_and_reads_no_further_than_its_window():
    read = []

    def items():
        for number in range(1000):
            read.append(number)
            yield number

    values = in_order(lambda number: number * number, items())
    assert [next(values) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(read) < 200
    values.close()


def _projected(roll):
    turned = _HEAD @ Rotation.from_euler("Z", roll, degrees=True).as_matrix().T
    landmarks = np.zeros((68, 2))
    landmarks[_POSE_POINTS] = turned[:, :2]
    return landmarks
