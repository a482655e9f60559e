"""What should be kept, the second detector, the second classifier and the restoring attacker, against known answers."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from PIL import Image

from visard import CheckpointError
from visard_evaluation.kept import compare_kept, skin_mask
from visard_evaluation.second_classifier import SecondClassifier
from visard_evaluation.second_detector import look
from visard_evaluation.thumbnails import enlarge, shrink
from visard_export.checkpoints import load_classifier, sha256_of
from visard_export.prebuilt import WEIGHTS_FOLDER
from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_testing.people_photos import PEOPLE
from visard_testing.tiny_models import classifier, expected_gender


@pytest.fixture(scope="module")
def face(astronaut):
    photo = read_photo(astronaut)
    aligned = crop(photo, finder().find(photo)[0].quad)
    return aligned, finder().landmarks(aligned)


@pytest.fixture(scope="module")
def portraits():
    """(12, 512, 512, 3) aligned, and what they were generated as."""
    paths = sorted(PEOPLE.glob("*.jpg"))
    photos = [read_photo(path) for path in paths]
    aligned = [crop(photo, finder().find(photo)[0].quad) for photo in photos]
    return np.stack(aligned), [path.name.partition("_")[0] for path in paths]


# --- expression, light, skin ---


def test_the_same_face_keeps_everything(face):
    kept = compare_kept(face[0], face[0].copy(), face[1], face[1])
    assert (kept.mouth_opening, kept.eye_opening, kept.light_levels, kept.skin_delta_e) == (0, 0, 0, 0)
    assert kept.light_direction_degrees in (None, pytest.approx(0))


def test_openings_of_known_size(face):
    aligned, landmarks = face
    eyes = np.linalg.norm(landmarks[36:42].mean(axis=0) - landmarks[42:48].mean(axis=0))
    opened = landmarks.copy()
    gap = landmarks[66] - landmarks[62]
    opened[66] += 10 * gap / np.linalg.norm(gap)  # the lower lip, ten pixels away from the upper
    kept = compare_kept(aligned, aligned, landmarks, opened)
    assert kept.mouth_opening == pytest.approx(1000 / eyes)
    assert kept.eye_opening == 0
    closed = landmarks.copy()
    closed[[41, 40]], closed[[47, 46]] = landmarks[[37, 38]], landmarks[[43, 44]]  # the lower lids on the upper ones
    lids = np.linalg.norm(landmarks[[37, 38, 43, 44]] - landmarks[[41, 40, 47, 46]], axis=1).mean()
    assert compare_kept(aligned, aligned, landmarks, closed).eye_opening == pytest.approx(100 * lids / eyes)


def test_light_of_known_direction(face):
    landmarks = face[1]
    y, x = np.mgrid[:512, :512] - 255.5
    flat, right, below, left = (
        np.repeat((128 + 0.2 * ramp).round().astype(np.uint8)[..., None], 3, axis=2) for ramp in (0 * x, x, y, -x)
    )
    turned = [
        compare_kept(right, other, landmarks, landmarks).light_direction_degrees for other in (right, below, left)
    ]
    assert turned == pytest.approx([0, 90, 180], abs=2)
    assert compare_kept(flat, right, landmarks, landmarks).light_direction_degrees is None
    brighter = compare_kept(right, right + 20, landmarks, landmarks)
    assert brighter.light_levels == pytest.approx(20)
    assert brighter.light_direction_degrees == pytest.approx(0, abs=0.1)


def test_skin_of_known_colour(face):
    """Only skin counts: what changes in eyes, lips and around the face does not."""
    aligned, landmarks = face
    mask = skin_mask(landmarks, 512)
    red, green, elsewhere = aligned.copy(), aligned.copy(), aligned.copy()
    red[mask], green[mask], elsewhere[~mask] = (255, 0, 0), (0, 255, 0), 0
    # CIELAB (D65): red (53.24, 80.09, 67.20), green (87.73, −86.18, 83.18)
    expected = math.dist((53.24, 80.09, 67.20), (87.73, -86.18, 83.18))
    assert compare_kept(red, green, landmarks, landmarks).skin_delta_e == pytest.approx(expected, abs=0.05)
    assert compare_kept(aligned, elsewhere, landmarks, landmarks).skin_delta_e == 0
    inner = np.rint(landmarks[np.r_[17:27, 36:60]]).astype(int)
    assert not mask[inner[:, 1], inner[:, 0]].any()


# --- the second detector ---


def test_yunet_sees_faces_and_nothing_else(astronaut):
    photo = read_photo(astronaut)
    quad = finder().find(photo)[0].quad
    assert look(photo, quad)
    covered = photo.copy()
    covered[50:300, 100:350] = 128
    assert not look(covered, quad)


# --- the second classifier ---


def test_second_classifier_in_onnx(tmp_path, portraits):
    onnx.save(classifier(), tmp_path / "c.onnx")
    second = SecondClassifier(tmp_path / "c.onnx")
    expected = expected_gender(portraits[0])
    assert second.genders(portraits[0]) == ["male" if male > female else "female" for female, male in expected]
    assert second.provenance() == {"file": "c.onnx", "sha256": sha256_of(tmp_path / "c.onnx")}


def test_second_classifier_in_safetensors(portraits):
    file = WEIGHTS_FOLDER / "gender_classifier.safetensors"
    assert load_classifier(file).network_name == "resnet18"
    seen = SecondClassifier(file).genders(portraits[0])
    assert sum(a == b for a, b in zip(seen, portraits[1], strict=True)) >= 10


def test_unusable_second_classifiers(tmp_path):
    onnx.save(classifier(size=64), tmp_path / "small.onnx")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name, words in (("small.onnx", "512"), ("broken.safetensors", "broken"), ("gone.onnx", "gone")):
        with pytest.raises(CheckpointError, match=words):
            SecondClassifier(tmp_path / name)


# --- the attacker that restores ---


def test_thumbnails_come_back_to_their_place(face):
    back = enlarge(shrink(face[0])).astype(float)
    inside = np.s_[100:460, 80:430]
    assert np.abs(back[inside] - face[0][inside]).mean() < 6
    assert np.linalg.norm(finder().landmarks(back.astype(np.uint8)) - face[1], axis=1).mean() < 8


def test_a_planted_change_is_restored_for_people_never_seen(portraits, monkeypatch):
    """Darkened and recoloured portraits: learned from the others, every one comes much nearer to what it was."""
    from visard_evaluation import restore

    monkeypatch.setattr(restore, "STEPS", 60)
    clear = np.stack([np.asarray(Image.fromarray(each).resize((32, 32))) for each in portraits[0]])
    hidden = (clear[..., ::-1] * 0.5).astype(np.uint8)
    people = [str(index) for index in range(12)]
    counted = []
    restored = restore.restore(hidden, clear, people, lambda steps: (counted.append(step) or step for step in steps))
    assert len(counted) == restore.FOLDS * 60
    errors = [np.abs(each.astype(float) - clear).mean(axis=(1, 2, 3)) for each in (hidden, restored)]
    assert (errors[1] < errors[0]).all()
    assert errors[1].mean() < errors[0].mean() / 2
    assert restore.restore(hidden[:8], clear[:8], people[:8]) is None
