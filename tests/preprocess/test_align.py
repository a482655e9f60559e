"""Finding faces: none is missed that dlib can see, and landmarks are those of the full-size photo."""

from __future__ import annotations

import bz2
import subprocess
import sys
import threading

import dlib
import numpy as np
import pytest
from PIL import Image

from visard_errors import CheckpointError
from visard_preprocess.align import MIN_FACE_PX, FaceFinder, finder, installed_model
from visard_preprocess.geometry import crop, ffhq_quad
from visard_preprocess.photo import read_photo
from visard_testing.tiny_models import FACE

SAME_PERSON_BELOW = 0.6


@pytest.fixture(scope="module")
def photo(astronaut):
    return read_photo(astronaut)


@pytest.fixture(scope="module")
def predictor():
    return dlib.shape_predictor(str(installed_model("shape_predictor_68_face_landmarks.dat")))


def resized(photo, scale):
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def in_eye_distances(found, expected):
    """Mean distance of landmarks in units of the distance between the eyes."""
    eyes = np.linalg.norm(expected[36:42].mean(axis=0) - expected[42:48].mean(axis=0))
    return np.linalg.norm(found - expected, axis=1).mean() / eyes


def textbook_landmarks(photo, predictor):
    box = max(dlib.get_frontal_face_detector()(photo, 1), key=lambda box: box.width())
    return np.array([(point.x, point.y) for point in predictor(photo, box).parts()], np.float64)


# --- which faces are found ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_as_many_faces_as_dlib_sees_with_one_enlargement(shared_photos):
    # Of the portraits that differ by their person alone, numbers 02 to 19 are left out for the time they take.
    portraits = tuple(f"{number:02}_" for number in range(2, 20))
    rows = {name: row for name, row in shared_photos.items() if not name.startswith(portraits)}
    found = {name: len(finder().find_frontal(read_photo(row["path"]))) for name, row in rows.items()}
    assert found == {name: int(row["faces_seen_by_dlib_hog"]) for name, row in rows.items()}


@pytest.mark.parametrize("face_px", [90, 120, 450])
def test_a_small_face_in_a_12_megapixel_photo_is_found(photo, face_px):
    scale = face_px / finder().find(photo)[0].size_px
    small = resized(photo, scale)
    scene = np.full((3000, 4000, 3), 120, np.uint8)
    scene[: small.shape[0], 300 : 300 + small.shape[1]] = small
    centre = np.array(finder().find(photo)[0].quad.centre) * scale + (300, 0)
    face = min(finder().find(scene), key=lambda face: np.linalg.norm(face.quad.centre - centre))
    np.testing.assert_allclose(face.quad.centre, centre, atol=0.1 * face_px)
    assert face.size_px == pytest.approx(face_px, rel=0.2)
    assert not face.too_small


def test_a_face_below_the_minimum_is_found_and_says_so(photo):
    size = finder().find(photo)[0].size_px
    (small,) = finder().find(resized(photo, 32 / size))
    assert small.too_small
    assert small.size_px < MIN_FACE_PX
    (enough,) = finder().find(resized(photo, 48 / size))
    assert not enough.too_small


def test_largest_first(shared_photos):
    sizes = [face.size_px for face in finder().find(read_photo(shared_photos["48_dlib_bald_guys.jpg"]["path"]))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (512, 512)])
def test_photos_without_a_face(shape):
    assert finder().find(np.full((*shape, 3), 128, np.uint8)) == ()


# --- where they are -------------------------------------------------------------------------------------------------


def test_box_landmarks_and_quad_belong_together(photo):
    (face,) = finder().find(photo)
    left, top, right, bottom = face.box
    assert right - left == pytest.approx(bottom - top)
    assert right - left == face.size_px
    centre = face.landmarks.mean(axis=0)
    assert left < centre[0] < right
    assert top < centre[1] < bottom
    assert face.landmarks.shape == (68, 2)
    assert face.quad == ffhq_quad(face.landmarks)
    assert face.confidence > 0.9
    assert face.confirmed
    # What FFHQ alignment is for: eyes level and at the same height in every crop.
    eyes = face.quad.to_crop(np.stack([face.landmarks[36:42].mean(axis=0), face.landmarks[42:48].mean(axis=0)]))
    assert np.abs(eyes[0, 1] - eyes[1, 1]) < 12
    np.testing.assert_allclose(eyes.mean(axis=0), (256, 240), atol=15)


def test_landmarks_are_those_of_the_full_size_photo(photo, predictor):
    large = resized(photo, 4)
    assert in_eye_distances(finder().find(large)[0].landmarks, textbook_landmarks(large, predictor)) < 0.02


def test_landmarks_of_real_photos_are_those_of_the_textbook(shared_photos, predictor):
    differences = []
    for name in ("43_webmorphr.stim_lisa2.jpg", "50_face_recognition_biden.jpg", "55_insightface_rot_0.jpg"):
        real = read_photo(shared_photos[name]["path"])
        found = finder().find(real)[0].landmarks
        differences.append(in_eye_distances(found, textbook_landmarks(real, predictor)))
    assert np.mean(differences) < 0.02


@pytest.mark.parametrize("face_px", [MIN_FACE_PX, 60, 200])
def test_landmarks_of_a_small_face_are_those_of_the_large_one(photo, face_px):
    large = finder().find(photo)[0]
    scale = face_px / large.size_px
    small = finder().find(resized(photo, scale))[0]
    scale = resized(photo, scale).shape[0] / photo.shape[0]
    assert in_eye_distances((small.landmarks + 0.5) / scale - 0.5, large.landmarks) < 0.04


# --- whose they are -------------------------------------------------------------------------------------------------


def test_descriptors_tell_people_apart(shared_photos):
    described = {}
    for name in ("001_03", "001_08", "042_03"):  # one person twice, neutral and smiling, and another
        (row,) = (row for file, row in shared_photos.items() if file.endswith(f"stim_{name}.jpg"))
        photo = read_photo(row["path"])
        described[name] = finder().descriptor(crop(photo, finder().find(photo)[0].quad))
    assert described["001_03"].shape == (128,)
    assert described["001_03"].dtype == np.float64
    for a, descriptor_a in described.items():
        for b, descriptor_b in described.items():
            same = a[:3] == b[:3]
            assert (np.linalg.norm(descriptor_a - descriptor_b) < SAME_PERSON_BELOW) == same, (a, b)


def test_the_descriptor_is_dlibs_own(photo, predictor):
    """The known place of the face in a crop gives the descriptor that detecting it there would give."""
    face = finder().find(photo)[0]
    aligned = crop(photo, face.quad)
    recogniser = dlib.face_recognition_model_v1(str(installed_model("dlib_face_recognition_resnet_model_v1.dat")))
    box = max(dlib.get_frontal_face_detector()(photo, 1), key=lambda box: box.width())
    reference = np.array(recogniser.compute_face_descriptor(photo, predictor(photo, box)))
    assert np.linalg.norm(finder().descriptor(aligned) - reference) < 0.25


def test_a_crop_without_a_visible_face_has_a_descriptor_too():
    assert np.isfinite(finder().descriptor(np.zeros((512, 512, 3), np.uint8))).all()
    with pytest.raises(ValueError, match="512"):
        finder().descriptor(np.zeros((256, 256, 3), np.uint8))


# --- models and threads ---------------------------------------------------------------------------------------------


def test_a_packed_predictor_is_unpacked_and_one_of_other_landmarks_refused(tmp_path, monkeypatch):
    # The 5-point predictor: small enough to pack here, and it must be refused by what it predicts.
    path = tmp_path / "five.dat.bz2"
    path.write_bytes(bz2.compress(installed_model("shape_predictor_5_face_landmarks.dat").read_bytes(), 1))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CheckpointError, match="predicts 5 landmarks, not 68"):
        FaceFinder(landmarks_model=path)
    assert list(tmp_path.iterdir()) == [path]  # nothing unpacked stays


@pytest.mark.parametrize("name", ["missing.dat", "missing.dat.bz2", "broken.dat", "broken.dat.bz2"])
def test_an_unusable_predictor_is_named_with_what_to_do(tmp_path, name):
    (tmp_path / "broken.dat").write_bytes(b"not a model")
    (tmp_path / "broken.dat.bz2").write_bytes(b"not packed")
    with pytest.raises(CheckpointError, match=r"dlib\.net") as refusal:
        FaceFinder(landmarks_model=tmp_path / name)
    assert name in str(refusal.value)
    assert ("does not exist" in str(refusal.value)) == name.startswith("missing")


def test_an_explicit_predictor_finds_the_same(photo):
    given = FaceFinder(landmarks_model=installed_model("shape_predictor_68_face_landmarks.dat"))
    np.testing.assert_array_equal(given.find(photo)[0].landmarks, finder().find(photo)[0].landmarks)


def test_each_thread_has_one_finder_of_its_own(photo):
    here = finder()
    assert finder() is here
    elsewhere = []
    landmarks = here.find(photo)[0].landmarks

    def work():
        elsewhere.append((finder(), finder(), [finder().find(photo)[0].landmarks for _ in range(3)]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(elsewhere) == 3
    for first, second, found in elsewhere:
        assert first is second
        assert first is not here
        for other in found:
            np.testing.assert_array_equal(other, landmarks)


def test_importing_the_package_loads_neither_dlib_nor_pillow():
    code = "import sys, visard_preprocess; print(*sorted({'dlib', 'PIL', 'numpy'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_only_a_face_that_lies_as_it_did_takes_its_place(photo):
    aligned = crop(photo, finder().find(photo)[0].quad)
    other = np.asarray(Image.fromarray(FACE).convert("RGB").resize((512, 512)))
    fits = {
        "itself": aligned,
        "another": other,
        "in the dark": (aligned * 0.06).astype(np.uint8),
    }
    does_not = {
        "a wall": np.full_like(aligned, 128),
        "beside it": np.roll(aligned, 60, axis=1),
        "upside down": aligned[::-1].copy(),
        "a negative": 255 - aligned,
    }
    taken = {name: finder().takes_its_place(swapped, aligned) for name, swapped in (fits | does_not).items()}
    assert taken == dict.fromkeys(fits, True) | dict.fromkeys(does_not, False)
