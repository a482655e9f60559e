"""Nobody is missed: real faces, turned, hidden, in the dark and small, and nothing where nobody is."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from visard_preprocess import DETECTOR_THRESHOLD
from visard_preprocess.align import finder
from visard_preprocess.detect import MODEL, TILE, detect, iou, look_at, looks_at
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo

FOUR_GROUPS = ("001_03", "062_03", "030_03", "006_03")  # white, black, east Asian and west Asian people


@pytest.fixture(scope="module")
def photo(astronaut):
    return read_photo(astronaut)


@pytest.fixture(scope="module")
def face(photo):
    (face,) = finder().find(photo)
    return face


@pytest.fixture(scope="module")
def portraits(shared_photos):
    """Four people of four groups, 700×700."""
    rows = [row for name in FOUR_GROUPS for file, row in shared_photos.items() if file.endswith(f"stim_{name}.jpg")]
    return [Image.fromarray(read_photo(row["path"])).resize((700, 700), Image.Resampling.LANCZOS) for row in rows]


def turned(points, degrees, size):
    """Where points of a square picture lie after `Image.rotate(degrees)`: counter-clockwise around its middle."""
    middle, angle = (size - 1) / 2, np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - middle) @ turn.T + middle


def put_on_mask(picture, landmarks):
    """Paint over the face from the bridge of the nose to the jaw."""
    ImageDraw.Draw(picture).polygon([*map(tuple, landmarks[2:15]), tuple(landmarks[28])], fill=(120, 170, 200))


def in_eye_distances(found, expected):
    eyes = np.linalg.norm(expected[36:42].mean(axis=0) - expected[42:48].mean(axis=0))
    return np.linalg.norm(found - expected, axis=1).mean() / eyes


# --- at any angle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [15, 30, 45, 60, 90, 120, 180, 270])
def test_landmarks_of_a_turned_face_are_those_of_the_upright_one(photo, face, degrees):
    picture = np.asarray(Image.fromarray(photo).rotate(degrees, resample=Image.Resampling.BICUBIC))
    found = max(finder().find(picture), key=lambda each: each.confidence)
    expected = turned(face.landmarks, degrees, 512)
    assert in_eye_distances(found.landmarks, expected) < 0.1
    assert found.confirmed
    # So the crop is upright again: the same picture as that of the upright face.
    upright, again = (crop(*each).astype(float) for each in ((photo, face.quad), (picture, found.quad)))
    assert np.abs(upright - again)[150:380, 150:360].mean() < 12


def test_a_real_head_that_lies_on_its_side(shared_photos):
    (found,) = finder().find(read_photo(shared_photos["56_insightface_rot_90.jpg"]["path"]))
    assert found.confirmed  # HOG sees it, once it is upright
    x, y = found.quad.x_axis
    assert abs(y) > 2 * abs(x)


# --- in the dark, hidden, small -------------------------------------------------------------------------------------


@pytest.mark.parametrize("brightness", [0.12, 0.08, 0.06])
def test_in_dim_light_people_of_every_group_are_found(portraits, brightness):
    for portrait in portraits:
        (found,) = finder().find(np.asarray(ImageEnhance.Brightness(portrait).enhance(brightness)))
        assert found.landmarks is not None


def test_half_a_photo_in_the_dark(portraits):
    scene = Image.new("RGB", (1400, 700))
    scene.paste(portraits[0], (0, 0))
    scene.paste(ImageEnhance.Brightness(portraits[1]).enhance(0.06), (700, 0))
    left, right = sorted(finder().find(np.asarray(scene)), key=lambda face: face.box[0])
    assert left.box[2] < 700 < right.box[0]


@pytest.mark.parametrize("side", ["left", "right", "mouth", "border"])
def test_a_half_hidden_face_is_found(photo, face, side):
    picture = photo.copy()
    x, y = np.rint(face.landmarks.mean(axis=0)).astype(int)
    if side == "border":
        picture = np.ascontiguousarray(picture[:, x:])
    else:
        part = {"left": np.s_[:, :x], "right": np.s_[:, x:], "mouth": np.s_[y:]}[side]
        picture[part] = (90, 110, 90)
    found = finder().find(picture)
    assert len(found) == 1
    assert found[0].confidence > 0.8


def test_of_two_people_the_masked_one_is_found_too(portraits):
    for other in portraits:
        plain = finder().find(np.asarray(other))[0]
        masked = other.copy()
        put_on_mask(masked, plain.landmarks)
        for eye in (plain.landmarks[36:42], plain.landmarks[42:48]):  # and sunglasses
            centre, radius = eye.mean(axis=0), np.ptp(eye[:, 0]) * 0.85
            ImageDraw.Draw(masked).ellipse((*(centre - radius), *(centre + radius)), fill=(12, 12, 14))
        scene = Image.new("RGB", (1400, 700))
        scene.paste(portraits[0], (0, 0))
        scene.paste(masked, (700, 0))
        found = finder().find(np.asarray(scene))
        assert len(found) == 2
        assert max(iou(each.box, np.add(plain.box, (700, 0, 700, 0))) for each in found) > 0.4


@pytest.mark.parametrize("hidden", ["nothing", "mouth", "half"])
def test_a_face_with_something_before_it_is_not_taken_for_a_whole_one(portraits, hidden):
    for portrait in portraits:
        picture = portrait.copy()
        landmarks = finder().find(np.asarray(portrait))[0].landmarks
        if hidden == "mouth":
            put_on_mask(picture, landmarks)
        elif hidden == "half":
            ImageDraw.Draw(picture).rectangle((landmarks[27, 0], 0, 700, 700), fill=(90, 110, 90))
        face = finder().find(np.asarray(picture))[0]
        assert (face.confirmed and not face.obstructed) == (hidden == "nothing")


@pytest.mark.parametrize("face_px", [20, 50, 60])
def test_a_small_face_in_a_12_megapixel_photo(photo, face, face_px):
    scale = face_px / face.size_px
    small = Image.fromarray(photo).resize((round(512 * scale),) * 2, Image.Resampling.LANCZOS)
    scene = Image.new("RGB", (4000, 3000), (120, 120, 120))
    scene.paste(small, (1137, 2201))
    (found,) = finder().find(np.asarray(scene))
    expected = np.array(face.box) * scale + (1137, 2201, 1137, 2201)
    assert iou(found.box, expected) > 0.6
    assert found.too_small == (face_px < 40)


@pytest.mark.parametrize("face_px", [100, 700, 2500])
def test_a_face_across_tiles_is_one_face(photo, face, face_px):
    scale = face_px / face.size_px
    large = Image.fromarray(photo).resize((round(512 * scale),) * 2, Image.Resampling.BICUBIC)
    scene = Image.new("RGB", (4000, 3000), (120, 120, 120))
    scene.paste(large, tuple(round(512 + TILE / 2 - scale * middle) for middle in face.quad.centre))
    faces = finder().find(np.asarray(scene))
    found = max(faces, key=lambda each: each.confidence)
    assert found.size_px == pytest.approx(face_px, rel=0.2)
    assert [each for each in faces if iou(each.box, found.box) > 0.1] == [found]


# --- nobody ---------------------------------------------------------------------------------------------------------


def test_nothing_where_nobody_is(shared_photos, photo, face):
    assert (
        detect(read_photo(shared_photos["59_webmorphr.stim_poppy-2447327_640.jpg"]["path"]), DETECTOR_THRESHOLD) == []
    )
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    assert detect(noise, DETECTOR_THRESHOLD) == []
    covered = photo.copy()
    left, top, right, bottom = np.rint(face.box).astype(int)
    covered[top - 60 : bottom + 30, left - 30 : right + 30] = 128
    assert detect(covered, DETECTOR_THRESHOLD) == []


def test_a_higher_threshold_finds_less(shared_photos):
    dogs = read_photo(shared_photos["49_dlib_dogs.jpg"]["path"])
    alarms = detect(dogs, 0.6)
    assert alarms  # they have faces, too
    assert detect(dogs, 0.95) == []
    assert all(each.score >= 0.6 for each in alarms)


# --- the network ----------------------------------------------------------------------------------------------------


def test_yunet_is_opencvs(astronaut):
    picture = np.asarray(Image.open(astronaut).convert("RGB").resize((640, 640)))
    reference = cv2.FaceDetectorYN.create(str(MODEL), "", (640, 640), 0.8)
    (expected,) = reference.detect(np.ascontiguousarray(picture[..., ::-1]))[1]
    scores, boxes, points = look_at(picture, 0.8)
    best = scores.argmax()
    assert (*boxes[best, :2], *(boxes[best, 2:] - boxes[best, :2])) == pytest.approx(expected[:4], abs=0.1)
    assert points[best].ravel() == pytest.approx(expected[4:14], abs=0.1)
    assert scores[best] == pytest.approx(expected[14], abs=1e-4)


def test_the_network_is_opencvs_but_for_the_sizes_that_are_free():
    model = onnx.load(MODEL)
    for tensor in model.graph.output:
        stride = int(tensor.name.split("_")[1])
        tensor.type.tensor_type.shape.dim[1].dim_value = (TILE // stride) ** 2
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = TILE
    digest = hashlib.sha256(model.SerializeToString()).hexdigest()
    assert digest == "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"  # of OpenCV Zoo's file


@pytest.mark.parametrize("edge", [256, 320, 480])
def test_a_small_picture_is_seen_as_in_a_whole_tile(photo, edge):
    picture = np.asarray(Image.fromarray(photo).resize((edge, edge * 3 // 4)))
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    tile[: picture.shape[0], :edge] = picture
    (in_tile, boxes, points), (scores, *alone) = look_at(tile, 0.6), look_at(picture, 0.6)
    inside = (boxes[:, 0] < edge) & (boxes[:, 1] < picture.shape[0])
    assert inside.sum() > 3
    np.testing.assert_allclose(scores, in_tile[inside], atol=1e-3)
    np.testing.assert_allclose(alone[0], boxes[inside], atol=0.05)
    np.testing.assert_allclose(alone[1], points[inside], atol=0.05)


@pytest.mark.parametrize("shape", [(3000, 4000), (700, 700), (641, 1281), (480, 640), (9, 2000)])
def test_every_pixel_is_looked_at_in_full_size_or_little_less(shape):
    seen = np.zeros(shape, bool)
    for look, (left, top), (across, down), _ in looks_at(np.full((*shape, 3), 200, np.uint8)):
        if max(across, down) < 1.4:
            height, width = look.shape[:2]
            seen[
                int(top * down) : round((top + height) * down), int(left * across) : round((left + width) * across)
            ] = 1
    assert seen.all()
