from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from face_population import SIZE, planted_face
from small_models import SMALL_CLASSIFIER
from visard_errors import CheckpointError, DataError
from visard_export.checkpoints import save_checkpoint
from visard_export.networks.resnet18 import ResNet18
from visard_training import photo_filters, photo_pairs, warp
from visard_training.cli import app
from visard_training.data import Sample, read_faces
from visard_training.pairs import read_pairs
from visard_training.photo_pairs import PhotoSteps, make_photo_pairs
from visard_training.transition import Transition, move

N = 16


def make_cache(folder: Path) -> Path:
    """Prepared faces of eight women and eight men; the last of each for validation, the one before for test."""
    (folder / "images").mkdir(parents=True)
    points = []
    with (folder / "faces.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "gender", "split", "person", "side_px", "inside", "age"])
        for i in range(N):
            male, age = i % 2 == 1, (i // 2 % 3) / 2
            image, landmarks = planted_face(male, age, noise=0.2, seed=i)
            large = cv2.resize(image, (512, 512), interpolation=cv2.INTER_CUBIC)
            Image.fromarray(large).save(folder / "images" / f"{i}.jpg", quality=95)
            split = "validation" if i >= N - 2 else "test" if i >= N - 4 else "train"
            table.writerow([f"images/{i}.jpg", "male" if male else "female", split, i, 400, 1.0, 20 + 20 * age])
            points.append(warp.resized(landmarks, SIZE, 512))
    np.save(folder / "landmarks.npy", np.array(points, np.float32))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache") / "faces")


@pytest.fixture(scope="module")
def samples(cache: Path) -> tuple[Sample, ...]:
    return read_faces(cache)


@pytest.fixture(scope="module")
def transition(samples: tuple[Sample, ...]) -> Transition:
    return photo_pairs.fit_faces(samples, SIZE)


def sample(samples: tuple[Sample, ...], gender: str) -> Sample:
    return next(s for s in samples if s.gender == gender)


def steps(gender: str = "female", multiples: tuple[float, ...] = (1.0, 1.5), min_certainty: float = 0.9) -> PhotoSteps:
    direction = "to_male" if gender == "female" else "to_female"
    return PhotoSteps(direction=direction, size=SIZE, multiples=multiples, min_certainty=min_certainty)


def judge_by_chin(transition: Transition, threshold: float):
    """A classifier that knows how this population differs: men have dark chins."""
    chin = warp.beard_mask(transition.mean_shape, SIZE)

    def classify(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        lightness = np.array([(image.mean(-1) * chin).sum() / chin.sum() for image in images])
        p_male = 1 / (1 + np.exp((lightness - threshold) / 2))
        return np.stack([1 - p_male, p_male], 1)

    return classify


class TestFilters:
    def test_good_faces_pass(self, samples: tuple[Sample, ...], transition: Transition) -> None:
        for gender in ("female", "male"):
            one = sample(samples, gender)
            image, landmarks = photo_pairs._image(one, SIZE), photo_pairs._landmarks(one, SIZE)
            assert photo_filters.rejection(one, image, landmarks, transition) is None

    def test_small_sources_are_rejected(self, samples: tuple[Sample, ...]) -> None:
        assert photo_filters.pose_rejection(replace(samples[0], side_px=199)) == "large enough"

    def test_turned_heads_are_rejected(self, samples: tuple[Sample, ...]) -> None:
        """A head turned to the side shows its nose nearer to one ear."""
        frontal = samples[0].landmarks
        turned = frontal.copy()
        turned[27:36, 0] += 0.2 * (frontal[16, 0] - frontal[0, 0])
        assert photo_filters.yaw(frontal) < 0.05
        assert photo_filters.yaw(turned) == pytest.approx(0.2, abs=0.05)
        assert photo_filters.pose_rejection(replace(samples[0], landmarks=turned)) == "frontal"

    def test_landmarks_of_no_face_are_rejected(self, samples: tuple[Sample, ...], transition: Transition) -> None:
        one = samples[0]
        image, landmarks = photo_pairs._image(one, SIZE), photo_pairs._landmarks(one, SIZE)
        broken = landmarks.copy()
        broken[warp.JAW] += np.random.default_rng(0).normal(0, 14, (17, 2))
        assert photo_filters.misfit(landmarks, transition.mean_shape) < 0.05
        assert photo_filters.rejection(one, image, broken, transition) == "landmarks fit"

    def test_turn_and_scale_are_no_misfit(self, transition: Transition) -> None:
        turned = transition.mean_shape @ np.array([[0.8, 0.3], [-0.2, 1.1]]) + [3, 4]
        assert photo_filters.misfit(turned, transition.mean_shape) == pytest.approx(0, abs=1e-9)

    def test_full_beards_are_rejected(self, samples: tuple[Sample, ...], transition: Transition) -> None:
        one = sample(samples, "male")
        image, landmarks = photo_pairs._image(one, SIZE), photo_pairs._landmarks(one, SIZE)
        beard = warp.beard_mask(landmarks, SIZE)[..., None] > 0.3
        bearded = np.where(beard, image // 3, image).astype(np.uint8)
        assert photo_filters.rejection(one, bearded, landmarks, transition) == "no full beard"


class TestCovariates:
    def with_groups(self, samples: tuple[Sample, ...], name: str, values: list[str]) -> NDArray[np.float64]:
        chosen = [replace(samples[i % N], groups={name: value}) for i, value in enumerate(values)]
        return photo_pairs.covariates(chosen)

    def test_numbers_are_standardised_and_gaps_are_average(self, samples: tuple[Sample, ...]) -> None:
        ages = ["20", "30", "40", "", "30", "20", "40", "30", "30"]
        (column,) = self.with_groups(samples, "age", ages).T
        known = np.array([20, 30, 40, 30, 20, 40, 30, 30])
        assert column[0] == pytest.approx((20 - known.mean()) / known.std())
        assert column[3] == 0

    def test_kinds_become_columns_except_the_usual_and_the_rare(self, samples: tuple[Sample, ...]) -> None:
        kinds = ["neutral"] * 6 + ["smiling"] * 4 + ["winking"]
        (column,) = self.with_groups(samples, "expression", kinds).T
        assert column.tolist() == [0] * 6 + [1] * 4 + [0]

    def test_no_groups_are_no_columns(self, samples: tuple[Sample, ...]) -> None:
        assert photo_pairs.covariates([replace(s, groups={}) for s in samples]).shape == (N, 0)


class TestChoice:
    def judged(self, samples: tuple[Sample, ...], transition: Transition, gender: str, wanted: float):
        """Judge with a threshold between the photo and the face moved by `wanted`."""
        one = sample(samples, gender)
        image, landmarks = photo_pairs._image(one, SIZE), photo_pairs._landmarks(one, SIZE)
        sign = 1 if gender == "female" else -1
        chin = warp.beard_mask(transition.mean_shape, SIZE)

        def lightness(multiple: float) -> float:
            picture = move(image, landmarks, transition, sign * multiple) if multiple else image
            return float((picture.mean(-1) * chin).sum() / chin.sum())

        threshold = 0.35 * lightness(0) + 0.65 * lightness(wanted)
        return one, judge_by_chin(transition, threshold)

    @pytest.mark.parametrize("gender", ["female", "male"])
    def test_the_nearest_convincing_multiple_is_kept(
        self, gender: str, samples: tuple[Sample, ...], transition: Transition
    ) -> None:
        one, classify = self.judged(samples, transition, gender, 1.0)
        multiples = (0.05, 1.0, 1.5)
        pair = photo_pairs.make_pair(one, transition, classify, steps(gender, multiples, 0.6))
        assert isinstance(pair, photo_pairs.PhotoPair)
        assert pair.multiple == (1.0 if gender == "female" else -1.0)
        assert pair.p_photo >= 0.6
        assert pair.p_moved >= 0.6
        assert (pair.photo == photo_pairs._image(one, SIZE)).all()

    def test_a_photo_that_looks_like_the_other_class_is_dropped(
        self, samples: tuple[Sample, ...], transition: Transition
    ) -> None:
        one = sample(samples, "female")
        everyone_male = judge_by_chin(transition, 255)
        assert photo_pairs.make_pair(one, transition, everyone_male, steps()) == "certain"

    def test_a_face_that_does_not_convince_is_dropped(
        self, samples: tuple[Sample, ...], transition: Transition
    ) -> None:
        one = sample(samples, "female")
        everyone_female = judge_by_chin(transition, 0)
        assert photo_pairs.make_pair(one, transition, everyone_female, steps()) == "certain"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_checkpoint(path, ResNet18(SMALL_CLASSIFIER), trained=False, licence="Apache-2.0")
    return path


class TestFolder:
    def make(self, cache: Path, folder: Path, classifier: Path, **options) -> dict[str, int]:
        any_pair = steps(multiples=(1.0,), min_certainty=0.001)
        return make_photo_pairs([cache], folder, classifier, any_pair, fit_on=cache, **{"workers": 1} | options)

    def test_interrupted_run_goes_on_and_reads_back(self, cache: Path, classifier: Path, tmp_path: Path) -> None:
        folder = tmp_path / "pairs"
        assert self.make(cache, folder, classifier, n=2)["certain"] == 2
        before = [(pair, pair.female.read_bytes()) for pair in read_pairs(folder)]
        survival = self.make(cache, folder, classifier, workers=2)
        pairs = read_pairs(folder)
        assert survival == {"sources": 7, **dict.fromkeys(photo_pairs.FILTERS, 7)}  # eight women, one of them for test
        assert [(pair, pair.female.read_bytes()) for pair in pairs[:2]] == before
        assert len({pair.source for pair in pairs}) == 7
        assert {pair.real for pair in pairs} == {"female"}
        assert {(pair.female_multiple, pair.male_multiple) for pair in pairs} == {(0.0, 1.0)}
        assert sorted(pair.split for pair in pairs) == ["holdout"] + ["train"] * 6
        assert "faces/12.jpg" not in {pair.source for pair in pairs}
        for pair in pairs:
            female, male = (np.asarray(Image.open(path), int) for path in (pair.female, pair.male))
            assert female.shape == (SIZE, SIZE, 3)
            assert 0.5 < np.abs(female - male).mean() < 30
        with Image.open(folder / photo_pairs.STAGES_FILE) as stages:
            assert stages.size == (7 * SIZE, 7 * SIZE)  # seven stages of seven faces

    def test_bad_input_is_refused_before_anything_is_written(
        self, cache: Path, classifier: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "pairs"
        with pytest.raises(CheckpointError, match="nowhere"):
            self.make(cache, folder, tmp_path / "nowhere.safetensors")
        with pytest.raises(DataError, match="not a folder of prepared faces"):
            self.make(tmp_path, folder, classifier)
        assert not folder.exists()

    @pytest.mark.parametrize("multiples", [(), (0.0, 1.0), (1.5, 1.0)])
    def test_multiples_must_rise(self, multiples: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="rise"):
            steps(multiples=multiples)

    def test_faces_that_tell_nothing_are_refused(self, samples: tuple[Sample, ...]) -> None:
        alike = [replace(s, groups={"sex": "1" if s.gender == "male" else "0"}) for s in samples]
        with pytest.raises(DataError, match="cannot be fitted"):
            photo_pairs.fit_faces(alike, SIZE)


def test_command_names_what_is_missing(tmp_path: Path, cache: Path, classifier: Path) -> None:
    arguments = ["pairs", str(tmp_path / "pairs"), "--source", "photos", "--classifier", str(classifier)]
    without = CliRunner().invoke(app, arguments)
    falling = ["--faces", str(cache), "--direction", "to_male", "--multiple", "1.5", "--multiple", "1"]
    wrong = CliRunner().invoke(app, [*arguments, *falling])
    assert (without.exit_code, wrong.exit_code) == (2, 2)
    assert "prepared faces" in without.output
    assert "rise" in wrong.output
    assert not (tmp_path / "pairs").exists()
