from __future__ import annotations

import cv2
import numpy as np
import pytest

from face_population import CHIN_DARKER, SIZE, base_face, planted_face, planted_shape
from visard_training import warp
from visard_training.transition import Transition, bearded_share, fit_transition, move, stages

N = 24


def fit(*, with_age: bool, size: int = SIZE) -> Transition:
    """Men are older than women in this population, so age passes for gender where the model does not know it."""
    rng = np.random.default_rng(1)
    male = np.arange(N) % 2 == 1
    age = rng.normal(0, 0.5, N) + 0.5 * male
    faces = [planted_face(bool(m), a, noise=0.2, seed=i) for i, (m, a) in enumerate(zip(male, age, strict=True))]
    shapes = np.array([warp.resized(landmarks, SIZE, size) for _, landmarks in faces])
    images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image, _ in faces]
    return fit_transition(shapes, male, age[:, None] if with_age else np.zeros((N, 0)), images.__getitem__, size)


@pytest.fixture(scope="module")
def transition() -> Transition:
    return fit(with_age=True)


def lab(image):
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


class TestWarp:
    def test_spline_passes_through_its_points(self) -> None:
        rng = np.random.default_rng(0)
        target = np.stack(np.meshgrid([20, 50, 80, 105], [25, 60, 100]), -1).reshape(-1, 2).astype(float)
        source = target + rng.normal(0, 2, target.shape)
        where = warp.backward_map(source, target, SIZE, smoothing=0)
        x, y = target.astype(int).T
        np.testing.assert_allclose(where[y, x], source, atol=0.1)

    def test_border_away_from_the_face_stays(self) -> None:
        _, landmarks = base_face()
        where = warp.backward_map(landmarks, landmarks + np.array([4, -3]), SIZE)
        upper = [0, 0], [0, -1]
        np.testing.assert_allclose(where[upper], warp.grid(SIZE)[upper], atol=0.5)
        assert np.abs(where - warp.grid(SIZE)).max() > 2.5

    def test_chin_beyond_the_border_does_not_fold(self) -> None:
        """The map goes on as it does inside: nothing near the face holds it to the border."""
        _, landmarks = base_face()
        low = landmarks + np.array([0, SIZE - landmarks[8, 1]])
        where = warp.backward_map(landmarks, low + 0.1 * (low - low[30]), SIZE)
        steps = np.diff(where[SIZE // 2 :, int(landmarks[8, 0]), 1])
        np.testing.assert_allclose(steps, 1 / 1.1, atol=0.2)

    def test_twin_landmarks_do_not_break_it(self) -> None:
        """The inner lips of a closed mouth fall on the same whole pixels."""
        _, landmarks = base_face()
        closed = landmarks.copy()
        closed[[67, 66, 65]] = closed[[61, 62, 63]]
        assert np.isfinite(warp.backward_map(landmarks, closed, SIZE)).all()

    def test_resting_map_keeps_every_bit(self) -> None:
        image, _ = base_face()
        assert (warp.sample(image, warp.grid(SIZE)) == image).all()

    def test_mirroring_a_face_mirrors_its_landmarks(self) -> None:
        _, landmarks = base_face()
        mirror = warp.mirrored(landmarks, SIZE)
        np.testing.assert_allclose(warp.mirrored(mirror, SIZE), landmarks)
        left_eye, right_eye = mirror[warp.LEFT_EYE], mirror[warp.RIGHT_EYE]
        assert left_eye[:, 0].max() < right_eye[:, 0].min()
        # order within each part: the outer corner of the left eye first, lips from left to right
        assert mirror[36, 0] < mirror[39, 0]
        assert mirror[48, 0] < mirror[54, 0]
        assert mirror[60, 0] < mirror[64, 0]
        assert mirror[51, 1] < mirror[57, 1]
        assert (np.diff(mirror[17:27, 0]) > 0).all()

    def test_resizing_landmarks_follows_the_picture(self) -> None:
        _, small = base_face(SIZE)
        _, large = base_face(4 * SIZE)
        np.testing.assert_allclose(warp.resized(large, 4 * SIZE, SIZE), small)

    def test_masks_lie_where_they_say(self) -> None:
        _, landmarks = base_face()
        masks = {
            "face": warp.face_mask(landmarks, SIZE),
            "beard": warp.beard_mask(landmarks, SIZE),
            "lips": warp.lips_mask(landmarks, SIZE),
            "eyes": warp.eyes_mask(landmarks, SIZE),
        }
        spots = {"nose": landmarks[30], "chin": (landmarks[8] + landmarks[57]) / 2, "eye": landmarks[36:42].mean(0)}
        spots |= {"corner": np.array([2.0, 2.0]), "lip": (landmarks[57] + landmarks[66]) / 2}
        seen = {
            name: {spot for spot, (x, y) in spots.items() if mask[round(y), round(x)] > 0.4}
            for name, mask in masks.items()
        }
        assert seen == {
            "face": {"nose", "chin", "eye", "lip"},
            "beard": {"chin"},
            "lips": {"lip"},
            "eyes": {"eye"},
        }
        assert all(mask.min() >= 0 and mask.max() <= 1 for mask in masks.values())


class TestFit:
    def test_planted_difference_is_recovered(self, transition: Transition) -> None:
        np.testing.assert_allclose(transition.shape, planted_shape(), atol=0.4)
        chin = warp.beard_mask(transition.mean_shape, SIZE) > 0.9
        brow = warp.eyes_mask(transition.mean_shape, SIZE) > 0.9
        assert transition.texture[chin][:, 0].mean() == pytest.approx(-CHIN_DARKER, abs=1)
        assert transition.texture[brow][:, 0].mean() == pytest.approx(0, abs=1)

    def test_covariates_are_not_taken_for_gender(self, transition: Transition) -> None:
        naive = fit(with_age=False)
        brow = warp.eyes_mask(transition.mean_shape, SIZE) > 0.9
        assert naive.texture[brow][:, 0].mean() > 1  # the older men are paler: the planted effect of age
        error, naive_error = (np.abs(t.shape - planted_shape()).mean() for t in (transition, naive))
        assert naive_error > 2 * error

    def test_transition_is_symmetric(self, transition: Transition) -> None:
        np.testing.assert_allclose(transition.texture, transition.texture[:, ::-1], atol=1e-4)
        mirrored = warp.mirrored(transition.mean_shape, SIZE)
        np.testing.assert_allclose(mirrored, transition.mean_shape, atol=1e-9)

    def test_mean_faces_lie_on_both_sides_of_the_middle(self, transition: Transition) -> None:
        man, woman = transition.mean_face(+1), transition.mean_face(-1)
        np.testing.assert_allclose(man - woman, transition.texture, atol=1e-3)
        np.testing.assert_allclose((man + woman) / 2, transition.mean_texture, atol=1e-3)

    def test_gender_that_another_column_tells_too_is_refused(self) -> None:
        male = np.arange(N) % 2 == 1
        shapes = np.repeat(base_face()[1][None], N, 0)
        with pytest.raises(ValueError, match="do not tell gender apart"):
            fit_transition(shapes, male, male[:, None].astype(float), lambda _: base_face()[0], SIZE)


class TestMove:
    def test_zero_is_the_photo(self, transition: Transition) -> None:
        image, landmarks = base_face()
        assert (move(image, landmarks, transition, 0.0) == image).all()

    def test_opposite_signs_go_opposite_ways(self, transition: Transition) -> None:
        image, landmarks = base_face()
        chin = warp.beard_mask(landmarks, SIZE) > 0.9
        woman, photo, man = (lab(move(image, landmarks, transition, m))[chin][:, 0].mean() for m in (-1, 0, 1))
        assert man < photo - 2 < photo + 2 < woman

    def test_jaw_moves_with_the_shape(self, transition: Transition) -> None:
        """Seen in the map between a picture of coordinates and the warped one."""
        image, landmarks = base_face()
        coordinates = np.repeat(warp.grid(SIZE)[..., :1].astype(np.uint8), 3, 2)  # grey = x
        x, y = np.rint(landmarks[12]).astype(int)
        by_multiple = {m: dict(stages(coordinates, landmarks, transition, m))["shape"][y, x, 0] for m in (-1, 1)}
        assert by_multiple[1] < x < by_multiple[-1]  # a wider jaw shows what lay further in
        assert image.shape == coordinates.shape

    def test_larger_multiples_go_further(self, transition: Transition) -> None:
        image, landmarks = base_face()
        changes = [np.abs(lab(move(image, landmarks, transition, m)) - lab(image)).mean() for m in (0.3, 0.6, 1.0, 1.5)]
        assert changes == sorted(changes)

    def test_away_from_the_face_nothing_changes(self, transition: Transition) -> None:
        image, landmarks = base_face()
        for multiple in (-1.5, 1.5):
            moved = move(image, landmarks, transition, multiple)
            changed = (moved != image).any(-1)
            assert changed.any()
            away = warp.face_mask(landmarks, SIZE, grow=1.35, feather=16) < 1e-3
            assert away.mean() > 0.1
            assert not changed[away].any()

    def test_around_the_face_only_the_shape_changes(self, transition: Transition) -> None:
        image, landmarks = base_face()
        pictures = dict(stages(image, landmarks, transition, 1.0))
        outside = warp.face_mask(landmarks, SIZE, grow=1.25, feather=4) == 0
        for name, picture in pictures.items():
            if name != "photo":
                assert (picture[outside] == pictures["shape"][outside]).all(), name

    def test_stages_have_names_and_end_with_the_result(self, transition: Transition) -> None:
        image, landmarks = base_face()
        to_male, to_female = (list(stages(image, landmarks, transition, m)) for m in (1, -1))
        assert [name for name, _ in to_male] == ["photo", "shape", "bands", "pull", "texture", "lips", "stubble"]
        assert [name for name, _ in to_female] == ["photo", "shape", "bands", "pull", "texture", "shave"]
        assert (to_male[-1][1] == move(image, landmarks, transition, 1)).all()

    def test_black_and_white_stays_black_and_white(self, transition: Transition) -> None:
        image, landmarks = base_face()
        grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
        for multiple in (-1, 1):
            moved = move(grey, landmarks, transition, multiple).astype(int)
            assert np.ptp(moved, axis=2).max() <= 3

    def test_every_size_gives_the_same_result(self, transition: Transition) -> None:
        large = fit(with_age=True, size=2 * SIZE)
        image, landmarks = base_face(2 * SIZE)
        small_image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        for multiple in (-1, 1):
            small = move(small_image, base_face()[1], transition, multiple).astype(float)
            reduced = cv2.resize(move(image, landmarks, large, multiple), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            assert np.abs(small - reduced).mean() < 0.5


def test_beard_is_measured(transition: Transition) -> None:
    image, landmarks = planted_face(male=False)
    picture = lab(image)
    picture[..., 0] -= 35 * (warp.beard_mask(landmarks, SIZE) > 0.3)
    bearded = np.clip(cv2.cvtColor(picture, cv2.COLOR_LAB2RGB) * 255, 0, 255).astype(np.uint8)
    assert bearded_share(image, landmarks, transition) < 0.35
    assert bearded_share(bearded, landmarks, transition) > 0.7
    shaved = move(bearded, landmarks, transition, -1)
    assert bearded_share(shaved, landmarks, transition) < 0.5
