"""The served persona graph: what it draws, where, in whose light, and what of the face cannot reach the result."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from visard_export.checkpoints import load_generator
from visard_export.demo import demo_checkpoints, plain_atlas
from visard_export.networks.atlas import DIRECTIONS, ROWS, TILE_SHAPE, TONES, Atlas, decode_sheet, encode_sheet
from visard_export.networks.persona import PersonaGenerator, TraitsNetwork
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.persona_graph import WINDOW, PersonaGraph
from visard_testing.small_models import aligned_faces, small_generator

OPEN, SHUT = 100.0, -100.0  # logits
LEFT, TOP, RIGHT, BOTTOM = WINDOW
INSIDE = (slice(200, 330), slice(200, 300))  # rows and columns well within every mask


def network(atlas=None, *, face=OPEN, skin=OPEN, group=(0, 0, 0)):
    """A generator that answers the same for every face: masks, and the group of tone, age and mouth."""
    torch.manual_seed(0)
    made = PersonaGenerator.of(Pix2PixHDGenerator(small_generator("persona")), TraitsNetwork(), atlas or plain_atlas())
    made.trunk.model[-1].bias.data[4:] = torch.tensor([face, skin])
    made.traits.last.weight.data.zero_()
    tone, old, opened = group
    made.traits.last.bias.data[:] = torch.tensor(
        [OPEN if i == tone else 0 for i in range(TONES)] + [old - 0.5, opened - 0.5]
    )
    return made


def patterned_atlas(count=2):
    """Every persona another pattern, fine enough to survive the change of light, and the same in both directions."""
    random = np.random.default_rng(1)
    coarse = random.integers(60, 200, (ROWS * count, 20, 15, 3), np.uint8)
    tiles = np.repeat(np.repeat(coarse, 16, 1), 16, 2).reshape(3, 2, 2, count, *TILE_SHAPE, 3)
    plain = plain_atlas(count)
    return Atlas(to_male=tiles, to_female=tiles[::-1], corner=plain.corner, scale=plain.scale)


def run(made, images, personas, direction="to_male"):
    with torch.inference_mode():
        graph = PersonaGraph(made, [direction])
        return graph(torch.from_numpy(images), torch.tensor(personas, dtype=torch.int32)[:, None]).numpy()


def flat(colour):
    return np.full((1, 512, 512, 3), colour, np.uint8)


@pytest.fixture(scope="module")
def faces():
    return aligned_faces()


def test_shut_mask_returns_the_photo(faces):
    np.testing.assert_array_equal(run(network(face=SHUT), faces, [0, 1]), faces)


def test_nothing_changes_outside_the_window(faces):
    made = network()
    torch.nn.init.normal_(made.trunk.model[-1].weight, 0, 0.3)  # fields in all directions
    changed = (run(made, faces, [0, 1]) != faces).any(-1)
    assert changed[:, TOP:BOTTOM, LEFT:RIGHT].mean() > 0.5
    changed[:, TOP:BOTTOM, LEFT:RIGHT] = False
    assert not changed.any()


@pytest.mark.parametrize("colour", [(180, 140, 120), (60, 40, 30), (128, 128, 128)])
def test_plain_persona_takes_the_photos_colour(colour):
    difference = run(network(), flat(colour), [0])[0][INSIDE].astype(int) - colour
    assert np.abs(difference.mean((0, 1))).max() < 2
    assert np.abs(difference).max() <= 4  # a compressed tile is not as plain


def test_light_from_one_side_falls_on_the_persona():
    light = np.linspace(60, 200, 512)
    photo = np.broadcast_to(light[None, None, :, None], (1, 512, 512, 3)).astype(np.uint8)
    row = run(network(), photo, [0])[0][260, 150:360].mean(-1)
    assert np.corrcoef(row, light[150:360])[0, 1] > 0.99
    assert np.abs(row - light[150:360]).mean() < 6


def test_texture_of_the_face_does_not_reach_the_result():
    # Two photos of the same light and the same strength of detail, whose details have nothing in common.
    random = np.random.default_rng(0)
    details = [random.integers(-40, 41, (1, 512, 512, 1)) for _ in range(2)]
    photos = np.concatenate([np.clip(flat((150, 120, 100)) + detail, 0, 255).astype(np.uint8) for detail in details])
    first, second = run(network(patterned_atlas()), photos, [0, 0])[:, 200:330, 200:300].astype(int)
    assert np.abs(photos[0].astype(int) - photos[1]).mean() > 20
    assert np.abs(first - second).mean() < 3


def test_persona_lies_where_its_placement_says():
    tile = np.full((3, 2, 2, 1, *TILE_SHAPE, 3), 100, np.uint8)
    tile[..., 100:104, 60:64, :] = 255  # rows, columns
    atlas = Atlas(to_male=tile, to_female=tile, corner=(100.0, 90.0), scale=1.25)
    swapped = run(network(atlas), flat((120, 120, 120)), [0])[0].mean(-1)
    row, column = np.unravel_index(swapped[150:400, 120:400].argmax(), (250, 280))
    assert (column + 120, row + 150) == (
        pytest.approx(100 + 1.25 * 61.5, abs=2),
        pytest.approx(90 + 1.25 * 101.5, abs=2),
    )


def test_number_chooses_the_persona_modulo_their_count(faces):
    made = network(patterned_atlas(3))
    photos = np.repeat(faces[:1], 6, 0)
    a, b, c, again, large, largest = run(made, photos, [0, 1, 2, 3, 3 * 10**8 + 1, 2**31 - 1])
    for one, other in ((a, b), (b, c), (a, c)):
        assert np.abs(one.astype(int) - other)[INSIDE].mean() > 5
    np.testing.assert_array_equal(a, again)
    np.testing.assert_array_equal(b, large)
    np.testing.assert_array_equal((a, b, c)[(2**31 - 1) % 3], largest)


def test_below_zero_the_graph_draws_one_itself(faces):
    made = network(patterned_atlas(2))
    known = run(made, np.repeat(faces[:1], 2, 0), [0, 1])
    torch.manual_seed(0)
    drawn = run(made, np.repeat(faces[:1], 12, 0), [-1] * 12)
    which = [[bool((picture == one).all()) for one in known] for picture in drawn]
    assert all(sum(row) == 1 for row in which)
    assert {row.index(True) for row in which} == {0, 1}


def test_every_group_has_its_own_personas(faces):
    atlas = patterned_atlas(1)
    pictures = []
    for tone in range(3):
        for old in range(2):
            for opened in range(2):
                picture = run(network(atlas, group=(tone, old, opened)), faces[:1], [0])
                only = np.broadcast_to(atlas.to_male[tone, old, opened], atlas.to_male.shape)
                alone = Atlas(to_male=only, to_female=only, corner=atlas.corner, scale=atlas.scale)
                # Beside other neighbours, the atlas is compressed a little differently.
                assert np.abs(run(network(alone), faces[:1], [0]).astype(int) - picture).mean() < 2
                pictures.append(picture.astype(int))
    assert min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]) > 4


def test_directions_draw_from_their_own_atlas(faces):
    made = network(patterned_atlas(1), group=(0, 0, 0))
    other = network(patterned_atlas(1), group=(2, 0, 0))  # to_female has the tones the other way round
    picture = run(made, faces[:1], [0]).astype(int)
    assert np.abs(picture - run(other, faces[:1], [0], "to_female")).mean() < 2
    assert np.abs(picture - run(made, faces[:1], [0], "to_female")).mean() > 4


def test_grey_photos_stay_grey(faces):
    grey = np.broadcast_to(faces.mean(-1, keepdims=True), faces.shape).astype(np.uint8)
    swapped = run(network(patterned_atlas()), grey, [0, 1]).astype(int)
    assert (swapped.max(-1) - swapped.min(-1)).max() <= 1
    coloured = run(network(patterned_atlas()), faces, [0, 1]).astype(int)
    assert (coloured.max(-1) - coloured.min(-1)).mean() > 5


@pytest.mark.parametrize("strength", [0, 6, 14])
def test_noise_of_the_photo_falls_on_the_persona_too(strength):
    noise = np.random.default_rng(0).normal(0, 1, (1, 512, 512, 1)) * strength
    photo = np.clip(np.rint(flat((130, 110, 100)) + noise), 0, 255).astype(np.uint8)
    swapped = run(network(), photo, [0])[0][INSIDE].mean(-1)
    assert swapped.std() == pytest.approx(strength, rel=0.4, abs=1.0)


def test_blurred_photos_get_blurred_personas():
    random = np.random.default_rng(0)
    sharp = np.clip(130 + np.repeat(np.repeat(random.normal(0, 25, (1, 256, 256, 1)), 2, 1), 2, 2), 0, 255)
    sharp = np.broadcast_to(sharp, (1, 512, 512, 3)).astype(np.uint8)
    fine = np.repeat(np.repeat(random.integers(40, 220, (12, 160, 120, 1), np.uint8), 2, 1), 2, 2)
    tiles = np.broadcast_to(fine, (12, *TILE_SHAPE, 3)).reshape(3, 2, 2, 1, *TILE_SHAPE, 3)
    made = network(Atlas(to_male=tiles, to_female=tiles, corner=(136.0, 96.0), scale=1.0))
    detail = [
        np.abs(np.diff(run(made, photo, [0])[0][INSIDE].mean(-1))).mean() for photo in (sharp, flat((130, 130, 130)))
    ]
    assert detail[1] < 0.3 * detail[0]


def test_sheet_survives_its_file():
    atlas = patterned_atlas(2)
    tiles = decode_sheet(encode_sheet(atlas.sheet("to_male")))
    wanted = atlas.to_male.reshape(24, *TILE_SHAPE, 3).transpose(0, 3, 1, 2)
    assert tiles.shape == wanted.shape
    assert np.abs(tiles.astype(int) - wanted).mean() < 4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_hair_of_the_donors_is_left_on_the_foreheads_of_the_demo_personas(direction):
    """Spots and single hairs differed by up to 21 levels from the skin around them."""
    made = load_generator(demo_checkpoints().to_male).network()
    tiles = decode_sheet(getattr(made, f"atlas_{direction}").numpy()).mean(1)
    for tile in tiles:
        forehead = cv2.GaussianBlur(tile, (0, 0), 3)[19:70, 84:156]
        assert np.abs(forehead - cv2.GaussianBlur(forehead, (0, 0), 12)).max() < 14
