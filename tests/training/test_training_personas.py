"""From faces to a persona generator: shapes, what the generator is taught, batches, and a training that goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from visard_errors import DataError, OutputError
from visard_export.checkpoints import load_generator
from visard_export.demo import plain_atlas
from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_training.personas import training as persona_training
from visard_training.personas.donors import tone_of
from visard_training.personas.frame import ATLAS_FILE, SHAPES_FILE, Frame, write_personas
from visard_training.personas.lessons import UNKNOWN, Lessons, put_before, relight
from visard_training.personas.options import PersonaOptions, PersonaTrainingOptions
from visard_training.personas.shapes import (
    KEPT_MODES,
    MIRROR,
    ShapeModel,
    mirrored,
    mouth_gap,
    moves_map,
    outline_mask,
    pixel_centres,
    sample,
    turned,
    with_forehead,
)
from visard_training.personas.targets import face_parts, targets
from visard_training.personas.training import train_persona_generator
from visard_training.runs.state import load_state, save_state


@pytest.fixture(scope="module")
def face(astronaut):
    """The astronaut's aligned face."""
    photo = read_photo(astronaut)
    found = finder().find(photo)[0]
    return face_parts(crop(photo, found.quad), with_forehead(found.quad.to_crop(found.landmarks)), "female")


@pytest.fixture(scope="module")
def frame(face):
    """A frame of variations of one face, wide enough for its modes to be those of a face."""
    random = np.random.default_rng(0)
    shapes = []
    for _ in range(60):
        matrix = np.eye(2) + random.normal(0, 0.05, (2, 2))
        shapes.append((face.shape - 256) @ matrix + 256 + random.normal(0, 1.5, face.shape.shape))
    mean = (face.shape + mirrored(face.shape)) / 2
    both = np.stack([mean, mean])
    return Frame(
        model=ShapeModel.fit(shapes),
        frame=both,
        persona={"female": both, "male": both},
        corner=(100.0, 90.0),
        scale=1.3,
    )


# Shapes


def test_mirror_is_its_own_inverse(face):
    assert sorted(MIRROR) == list(range(75))
    np.testing.assert_allclose(mirrored(mirrored(face.shape)), face.shape)


def test_mirrored_shape_fits_the_mirrored_picture(face):
    found = finder().landmarks(np.ascontiguousarray(face.picture[:, ::-1]))
    distance = np.linalg.norm(found - mirrored(face.shape)[:68], axis=1)
    assert np.median(distance) < 6  # of 512 pixels: the predictor itself is not symmetric


def test_forehead_lies_above_the_brows(face):
    assert face.shape.shape == (75, 2)
    assert face.shape[68:, 1].max() < face.shape[36:48, 1].mean()
    assert face.shape[69:74, 1].max() < face.shape[17:27, 1].min()


@pytest.mark.parametrize("degrees", [-20, 35])
def test_forehead_turns_with_the_face(face, degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(with_forehead(face.shape[:68] @ turn.T), face.shape @ turn.T, atol=1e-6)


def test_map_through_points_of_an_affine_move_is_that_move(face):
    matrix, shift = np.array([[1.05, 0.1], [-0.08, 0.95]]), np.array([12.0, -7.0])
    moves = moves_map(face.shape, face.shape @ matrix.T + shift)
    centres = pixel_centres((512, 512), np.ones(2))
    inner = (slice(40, -40), slice(40, -40))
    np.testing.assert_allclose(moves[inner], (centres @ matrix.T + shift - centres)[inner], atol=0.1)


def test_map_moves_a_picture_to_its_new_points(face):
    to = face.shape + np.array([9.0, -5.0])
    moved = sample(face.picture, moves_map(to, face.shape) + pixel_centres((512, 512), np.ones(2)))
    inner = (slice(150, 400), slice(150, 400))
    expected = np.roll(face.picture, (-5, 9), (0, 1))
    assert np.abs(moved[inner].astype(int) - expected[inner]).mean() < 1.5


def test_pinned_map_holds_the_border(face):
    moves = moves_map(face.shape + np.array([0, 15]), face.shape, pinned=True, smoothing=3.0)
    assert np.median(np.abs(moves[[0, -1]])) < 1
    assert np.abs(moves[256, 256] - [0, -15]).max() < 2


def test_open_mouth_is_kept(face, frame):
    other = face.shape.copy()
    other[[65, 66, 67, 55, 56, 57, 58, 59]] += [0, 20]
    shape = frame.model.in_pose_of(frame.persona["male"][0], other)
    assert mouth_gap(shape) == pytest.approx(mouth_gap(other), abs=0.03)
    assert mouth_gap(frame.model.in_pose_of(frame.persona["male"][0], face.shape)) < mouth_gap(shape) - 0.1


def test_nothing_else_of_the_face_enters_the_shape(face, frame):
    # Changes that the kept modes do not see, anywhere but in lids and lips, whose opening is kept.
    kept = frame.model.modes[KEPT_MODES].reshape(-1, 75, 2)
    free = np.setdiff1d(np.arange(75), [*range(36, 48), *range(60, 68)])
    seen = kept[:, free].reshape(len(kept), -1)
    change = np.random.default_rng(0).normal(0, 10, (len(free), 2))
    change -= (np.linalg.pinv(seen) @ (seen @ change.ravel())).reshape(-1, 2)
    other = face.shape.copy()
    other[free] += change
    assert np.abs(change).mean() > 5
    persona = frame.persona["male"][0]
    np.testing.assert_allclose(
        frame.model.in_pose_of(persona, other), frame.model.in_pose_of(persona, face.shape), atol=1e-6
    )


def test_profile_is_turned_and_a_frontal_face_is_not(face):
    assert turned(face.shape) < 0.2
    squeezed = face.shape.copy()
    squeezed[:, 0] = 256 + (squeezed[:, 0] - 256) * 0.9
    squeezed[30, 0] = squeezed[0, 0]
    assert turned(squeezed) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(("lightness", "tone"), [(75, 0), (60, 0), (55, 1), (48, 1), (30, 2)])
def test_tone_of_skin(lightness, tone):
    assert tone_of(lightness) == tone


# What the generator is taught


def test_persona_covers_the_face_and_not_hair_or_background(face, frame):
    taught = targets(face, "male", frame)
    at = np.rint(face.shape / 4).astype(int)
    for feature in (30, 33, 62, 41, 46):  # nose, lips, eyes
        assert taught.face[at[feature, 1], at[feature, 0]] > 0.8
    assert taught.face[:20].max() < 0.1
    assert taught.face[:, :18].max() < 0.1
    assert (taught.skin <= taught.face + 0.35).all()
    assert taught.skin[at[30, 1], at[30, 0]] > 0.4


def test_persona_field_leads_to_the_frame(face, frame):
    # With the face's own shape as persona, the field is the way from face to frame.
    own = Frame(
        model=frame.model, frame=frame.frame, persona={"male": np.stack([face.shape] * 2)}, corner=(0, 0), scale=1
    )
    taught = targets(face, "male", own)
    centres = pixel_centres((64, 64), np.full(2, 8))
    for point in (30, 36, 45, 51):
        x, y = np.rint(face.shape[point] / 8 - 0.5).astype(int)
        landed = centres[y, x] + taught.persona[y, x]
        wanted = frame.frame[0][point] + centres[y, x] - face.shape[point]
        np.testing.assert_allclose(landed, wanted, atol=6)
    assert np.abs(taught.surroundings).max() < 12  # nothing moves far


def test_hair_in_the_face_is_not_covered(face, frame):
    picture = face.picture.copy()
    brows = int(face.shape[17:27, 1].min())
    x = slice(int(face.shape[2, 0]), int(face.shape[14, 0]))
    picture[: brows - 4, x] = [25, 18, 15]
    with_fringe = targets(face_parts(picture, face.shape, "female"), "male", frame)
    without = targets(face, "male", frame)
    forehead = (slice(brows // 4 - 16, brows // 4 - 3), slice(52, 76))
    assert without.face[forehead].mean() > 0.5
    assert with_fringe.face[forehead].mean() < 0.3
    assert with_fringe.face[70:90, 55:72].mean() > 0.9  # the nose is


def test_a_beard_below_the_jaw_goes_for_a_woman_alone(face, frame):
    picture = face.picture.copy()
    rows = np.mgrid[:512, :512][0]
    beard = (outline_mask(face.shape, -20) > 0) & (rows > face.shape[33, 1] + 12) & (outline_mask(face.shape, 45) == 0)
    picture[beard] = np.random.default_rng(0).integers(10, 35, (int(beard.sum()), 3))
    parts = face_parts(picture, face.shape, "male")
    woman, man = (targets(parts, gender, frame).face for gender in ("female", "male"))
    on_the_chin = beard[2::4, 2::4] & (outline_mask(face.shape, 16)[2::4, 2::4] > 0)
    assert min(woman[on_the_chin].mean(), man[on_the_chin].mean()) > 0.9
    below = (outline_mask(face.shape, -14) - outline_mask(face.shape, 0))[2::4, 2::4] * (
        rows[2::4, 2::4] > face.shape[5, 1]
    )
    assert (woman * below).sum() > 2 * (man * below).sum()


# Batches


def pictures(n=24):
    return torch.rand(n, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def test_what_is_put_before_a_face_leaves_the_mask():
    masks = torch.ones(400, 2, 128, 128)
    shown, left = put_before(pictures(8).repeat(50, 1, 1, 1), masks, torch.Generator().manual_seed(0))
    changed = (shown != pictures(8).repeat(50, 1, 1, 1)).any(1)
    taken = left[:, 0] < 0.5
    assert (taken & ~changed).float().mean() < 0.01  # only what was changed is taken from the mask
    glasses = changed.flatten(1).any(1) & ~taken.flatten(1).any(1)
    assert 20 < glasses.sum() < 120  # glasses are covered, and their lenses are no skin
    assert (left[glasses, 1] < 0.5).flatten(1).any(1).all()
    assert 80 < taken.flatten(1).any(1).sum() < 240


def test_batches_are_varied_repeatably():
    first, again, other = (relight(pictures(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().mean() > 0.02
    assert first.min() >= 0
    assert first.max() <= 1
    saturation = (first.amax(1) - first.amin(1)).flatten(1).mean(1)
    assert saturation.max() > 0.1


def lessons(n=6):
    random = np.random.default_rng(0)
    return Lessons(
        random.integers(0, 256, (n, 128, 128, 3), np.uint8),
        random.normal(0, 10, (n, 2, 4, 64, 64)).astype(np.float16),
        random.integers(0, 256, (n, 2, 2, 128, 128), np.uint8),
        random.integers(0, 2, (n, 3)).astype(np.int8),
        "digest",
    )


def test_mirrored_lessons_move_the_other_way():
    made = lessons(1)
    made.fields[:] = np.array([3, 5, 7, 9], np.float16).reshape(1, 1, 4, 1, 1)
    seen = {tuple(made.batch(1, torch.Generator().manual_seed(seed)).fields[0, :, 0, 0].tolist()) for seed in range(20)}
    assert seen == {(3, 5, 7, 9), (-3, 5, -7, 9)}


# Training


@pytest.fixture
def personas(tmp_path, frame):
    """What `make_personas` leaves, with plain personas."""
    folder = tmp_path / "personas"
    folder.mkdir()
    atlas = replace(plain_atlas(), corner=frame.corner, scale=frame.scale)
    write_personas(folder, atlas, frame)
    return folder


OPTIONS = PersonaTrainingOptions(
    steps=12, traits_steps=12, batch_size=2, ngf=2, n_downsampling=2, n_blocks=1, save_every=5
)
QUIET = Console(quiet=True)


def test_training_goes_on_to_the_same_weights(tmp_path, personas, monkeypatch):
    monkeypatch.setattr(persona_training, "make_lessons", lambda *args, **options: lessons())
    whole = train_persona_generator([], personas, tmp_path / "whole", OPTIONS, console=QUIET)
    cut = Cut(tmp_path / "cut", stop_at=8)
    monkeypatch.setattr(persona_training.functional, "binary_cross_entropy_with_logits", cut.interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_persona_generator([], personas, tmp_path / "cut", OPTIONS, console=QUIET)
    monkeypatch.undo()
    monkeypatch.setattr(persona_training, "make_lessons", lambda *args, **options: lessons())
    resumed = train_persona_generator([], personas, tmp_path / "cut", OPTIONS, console=QUIET)
    first, second = load_generator(whole), load_generator(resumed)
    assert first.trained
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(second.tensors[name], tensor, rtol=0, atol=0)
    assert torch.allclose(first.network().placement, torch.tensor([100.0, 90.0, 1.3]))


class Cut:
    """Stops a training in the middle of a step, as Ctrl-C would."""

    def __init__(self, folder, stop_at):
        self.calls, self.stop_at = 0, stop_at
        self.original = torch.nn.functional.binary_cross_entropy_with_logits

    def interrupt(self, *args, **options):
        self.calls += 1
        if self.calls == self.stop_at * 2:  # the traits ask it twice a step
            raise KeyboardInterrupt
        return self.original(*args, **options)


def test_training_learns(tmp_path, personas, monkeypatch):
    made = lessons(1)
    made.fields[:] = 20
    made.masks[:] = 255
    monkeypatch.setattr(persona_training, "make_lessons", lambda *args, **options: made)
    options = PersonaTrainingOptions(steps=120, traits_steps=1, batch_size=2, ngf=2, n_downsampling=2, n_blocks=1)
    path = train_persona_generator([], personas, tmp_path / "run", options, console=QUIET)
    network = load_generator(path).network()
    with torch.no_grad():
        out = network.trunk(torch.zeros(1, 6, 128, 128))[0]
    assert out[4:].mean() > 1  # the masks open
    assert 5 < float(out[3].mean()) * persona_training.PERSONA_SCALE * 512 < 35  # mirrored pictures agree on y alone


def test_another_trainings_state_is_refused(tmp_path, personas, monkeypatch):
    monkeypatch.setattr(persona_training, "make_lessons", lambda *args, **options: lessons())
    train_persona_generator([], personas, tmp_path / "run", OPTIONS, console=QUIET)
    other = PersonaTrainingOptions(**{**vars(OPTIONS), "seed": 1})
    with pytest.raises(OutputError, match=r"other settings \(seed\)"):
        train_persona_generator([], personas, tmp_path / "run", other, console=QUIET)


def test_a_state_of_an_earlier_version_goes_on(tmp_path, personas, monkeypatch):
    """Its settings were one line of text; see `_PersonaRun.of_earlier_version`."""
    monkeypatch.setattr(persona_training, "make_lessons", lambda *args, **options: lessons())
    path = train_persona_generator([], personas, tmp_path / "run", OPTIONS, console=QUIET)
    before = load_generator(path).tensors
    state = load_state(tmp_path / "run" / "state.pt")
    settings = state.pop("settings")
    state["run"] = f"{settings.pop('lessons')} {sorted(settings.items())}"
    state |= state.pop("networks")
    state |= {f"{name} optimiser": optimiser for name, optimiser in state.pop("optimisers").items()}
    save_state(tmp_path / "run" / "state.pt", state)
    train_persona_generator([], personas, tmp_path / "run", replace(OPTIONS, half=True), console=QUIET)
    for name, tensor in load_generator(path).tensors.items():
        torch.testing.assert_close(tensor.float(), before[name].float(), rtol=1e-3, atol=1e-4)


def test_traits_that_nobody_knows_teach_nothing(tmp_path, personas, monkeypatch):
    made = lessons()
    made.traits[:] = UNKNOWN
    monkeypatch.setattr(persona_training, "make_lessons", lambda *args, **options: made)
    path = train_persona_generator([], personas, tmp_path / "run", OPTIONS, console=QUIET)
    assert all(tensor.isfinite().all() for tensor in load_generator(path).tensors.values())


def test_folder_without_personas_is_refused(tmp_path):
    with pytest.raises(DataError, match="visard train personas"):
        train_persona_generator([], tmp_path, tmp_path / "run", OPTIONS, console=QUIET)


@pytest.mark.parametrize("name", [SHAPES_FILE, ATLAS_FILE])
@pytest.mark.parametrize("share", [0, 0.5])
def test_personas_that_are_cut_off_are_refused(tmp_path, personas, name, share):
    content = (personas / name).read_bytes()
    (personas / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="visard train personas"):
        train_persona_generator([], personas, tmp_path / "run", OPTIONS, console=QUIET)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"donors": 7}, "at least 8"), ({"count": 0}, "count"), ({"skin": 1.5}, r"skin must be 0\.\.1")],
)
def test_persona_options_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        PersonaOptions(**options)
