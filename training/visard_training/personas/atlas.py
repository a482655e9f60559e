"""Makes the personas: faces of nobody, each the average of many donors, laid into one common frame.

    prepared donors ─► shape and texture in the frame ─► groups by gender, tone, age ─► even light ─► averages ─► atlas

Donors should be generated portraits, so that no real person stands behind any pixel. The faces that personas will
replace are not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy import stats

from visard_export.networks.atlas import AGES, EXPRESSIONS, TILE_SHAPE, TONES, Atlas
from visard_preprocess.files import write_atomically
from visard_preprocess.geometry import CROP_SIZE
from visard_training.data.faces import GENDERS, Gender, read_faces
from visard_training.personas.donors import Donor, mean_shape, nearest, read_donors
from visard_training.personas.frame import Frame, write_personas
from visard_training.personas.options import FEWEST_DONORS, PersonaOptions
from visard_training.personas.shapes import (
    OUTLINE,
    Shape,
    ShapeModel,
    mirrored,
    moves_map,
    outline_mask,
    pixel_centres,
    sample,
    with_forehead,
)
from visard_training.runs.progress import say, track

REPORT_FILE, SHEET_FILE = "report.json", "personas.jpg"

_LIGHT_SIGMA = 30  # pixels of the crop: what varies more slowly is light
_SKIN_SIGMA = 2.0  # pixels of a tile: what varies faster is pores and lashes, which an average loses
_RIM, _RIM_SIGMAS = 14, (4.0, 12.0, 36.0, 90.0)  # pixels of the crop, of a tile: where skin is continued, how
_MARGIN = 18  # pixels of the crop around the mean outline that a tile still shows
_BROW_RAMP, _HAIR_RAMP = 12, 16  # pixels of a tile
_BARE = 0.1  # of the height from the chin to the brows: as much of the forehead is bare skin in every donor
_MAX_PORES = 8.0  # grey levels: what stands out more from its surroundings is a hair
_TRIMMED = 0.25  # share of the values of a pixel that is left out at either end when donors are averaged
_OUTLIERS = 0.25  # share of a group's donors that are least like it: glasses, beards, hair in the face


def make_personas(
    caches: Sequence[Path],
    shape_caches: Sequence[Path],
    output: Path,
    options: PersonaOptions | None = None,
    *,
    console: Console | None = None,
) -> Atlas:
    """Make an atlas of personas, with the shapes that go with it, a contact sheet and a report.

    Args:
        caches: prepared donors (`visard train prepare`) with a column `age` or `age_guess`; split `test` is left out.
        shape_caches: prepared faces of all poses and expressions, whose points alone are used.
        output: folder to fill.
        options: how to make them.
        console: where it says how it goes.

    Raises:
        DataError: a cache cannot be used, or a group has too few donors.
    """
    options, console = options or PersonaOptions(), console or Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    shapes = [with_forehead(s.landmarks) for c in shape_caches for s in read_faces(c) if s.split != "test"]
    donors = read_donors(caches)
    say(console, f"{len(donors)} donors that look at the camera, {len(shapes)} faces for the shapes")
    frame = _frame(donors, ShapeModel.fit(shapes), options.push)
    rng = np.random.default_rng(options.seed)
    pictures: dict[Gender, NDArray[np.uint8]] = {}
    groups: dict[str, int] = {}
    layers = {id(d): _layers(d, frame) for d in track(donors, "Laying donors into the frame", len(donors), console)}
    means = {g: _mean_layers([layers[id(d)] for d in donors if d.gender == g]) for g in GENDERS}
    for gender in GENDERS:
        other = GENDERS[1 - GENDERS.index(gender)]
        of_gender = [d for d in donors if d.gender == gender]
        tiles = []
        for tone in range(TONES):
            for age in range(AGES):
                members = nearest(of_gender, tone, bool(age), 2 * options.donors)
                members = _typical(members, layers)
                groups[f"{gender} tone {tone} {'old' if age else 'young'}"] = len(members)
                faces = [
                    _persona(members, of_gender, layers, means[gender], means[other], frame, options, rng)
                    for _ in range(options.count)
                ]
                tiles.append(np.stack(faces, 1))  # (expressions, count, h, w, 3)
                say(console, f"{gender}, tone {tone}, {'old' if age else 'young'}: {len(members)} donors")
        pictures[gender] = np.stack(tiles).reshape(TONES, AGES, EXPRESSIONS, options.count, *TILE_SHAPE, 3)
    atlas = Atlas(to_female=pictures["female"], to_male=pictures["male"], corner=frame.corner, scale=frame.scale)
    _write(output, atlas, frame, {"options": asdict(options), "donors": groups})
    return atlas


def _frame(donors: Sequence[Donor], model: ShapeModel, push: float) -> Frame:
    """Mean shapes of both genders with closed and with open mouth; the frame lies halfway between them."""
    mean = {
        gender: np.stack([mean_shape([d for d in donors if d.gender == gender], is_open) for is_open in (False, True)])
        for gender in GENDERS
    }
    difference = mean["male"] - mean["female"]
    frame = (mean["male"] + mean["female"]) / 2
    low, high = frame.min((0, 1)) - _MARGIN, frame.max((0, 1)) + _MARGIN
    height, width = TILE_SHAPE
    scale = float(max((high - low)[0] / width, (high - low)[1] / height))
    corner = (low + high) / 2 - scale * (np.array([width, height]) - 1) / 2
    return Frame(
        model=model,
        frame=frame,
        persona={"male": mean["male"] + push * difference, "female": mean["female"] - push * difference},
        corner=(float(corner[0]), float(corner[1])),
        scale=scale,
    )


def _tile_centres(frame: Frame) -> NDArray[np.float32]:
    height, width = TILE_SHAPE
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    centres: NDArray[np.float32] = (grid * frame.scale + np.array(frame.corner)).astype(np.float32)
    return centres


def _into_tile(picture: NDArray[np.uint8], source: Shape, to: Shape, frame: Frame) -> NDArray[np.float32]:
    """Lay a picture with the points `source` into a tile, so that they come to lie at `to`."""
    whole = moves_map(to, source) + pixel_centres((CROP_SIZE, CROP_SIZE), np.ones(2))
    where = cv2.remap(whole, _tile_centres(frame), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(sample(picture, where).astype(np.float32), 0, 255)


def _layers(donor: Donor, frame: Frame) -> NDArray[np.float32]:
    """The donor in the frame with closed and with open mouth, and mirrored: (2, h, w, 3), evenly lit by symmetry."""
    both = []
    for expression in range(EXPRESSIONS):
        to = frame.frame[expression]
        there = _into_tile(donor.picture, donor.shape, to, frame)
        mirror = _into_tile(donor.picture[:, ::-1], mirrored(donor.shape), to, frame)
        both.append(np.stack([there, mirror]))
    return np.stack(both)  # (2, 2, h, w, 3)


def _mean_layers(layers: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.mean([each.mean(1) for each in layers], 0)
    return mean


def _typical(members: list[Donor], layers: dict[int, NDArray[np.float32]]) -> list[Donor]:
    """Leave out those that differ most from the rest: glasses, beards, hair and hands in the face."""
    bands = np.array([_high_band(layers[id(d)][0].mean(0).mean(-1), 6.0) for d in members])
    inner = bands - np.median(bands, 0)
    distance = np.sqrt((inner**2).mean((1, 2)))
    keep = max(FEWEST_DONORS + 2, round(len(members) * (1 - _OUTLIERS)))
    return [members[i] for i in np.argsort(distance)[:keep]]


def _high_band(grey: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    band: NDArray[np.float32] = grey - cv2.GaussianBlur(grey, (0, 0), sigma)
    return band


def _persona(
    members: list[Donor],
    of_gender: list[Donor],
    layers: dict[int, NDArray[np.float32]],
    own_mean: NDArray[np.float32],
    other_mean: NDArray[np.float32],
    frame: Frame,
    options: PersonaOptions,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Average some donors: (2, h, w, 3) with closed and with open mouth."""
    chosen = [members[i] for i in rng.choice(len(members), min(options.donors, len(members)), replace=False)]
    typical = members[: max(1, len(members) // 2)]  # the most typical: no fringe, no glasses
    detail = layers[id(typical[int(rng.integers(len(typical)))])]
    light = np.mean([d.lightness for d in chosen])
    by_tone = sorted(of_gender, key=lambda d: abs(d.lightness - light))
    own = {is_open: mean_shape(of_gender, is_open) for is_open in (False, True)}
    features = np.mean([m - own[d.open] for d in chosen for m in (d.shape, mirrored(d.shape))], 0)
    features[OUTLINE] = 0  # the outline is the generator's
    tiles = []
    for expression in range(EXPRESSIONS):
        mask = _tile_mask(frame, expression)
        base = _average([layers[id(d)][expression] for d in chosen], mask, own_mean[expression])
        mouths = [d for d in by_tone if d.open == bool(expression)][: options.donors]
        mouth = _average([layers[id(d)][expression] for d in mouths], mask, own_mean[expression])
        weight: NDArray[np.float32] = _mouth_mask(frame, expression)[..., None]
        mouth = mouth * _ratio(base, mouth, mask)
        tile: NDArray[np.float32] = base * (1 - weight) + mouth * weight
        pushed = _below_brows(frame, expression)  # above them the genders differ in hair
        tile = tile + options.push * (own_mean[expression] - other_mean[expression]) * pushed
        fine: NDArray[np.float32] = detail[expression][0]
        pores = np.clip(_high_band(fine, _SKIN_SIGMA), -_MAX_PORES, _MAX_PORES)
        tile = tile + options.skin * pores * (1 - weight)
        to = frame.to_tile(frame.frame[expression] + features)
        moves = moves_map(to, frame.to_tile(frame.frame[expression]), TILE_SHAPE)
        tile = sample(tile.astype(np.float32), moves + pixel_centres(TILE_SHAPE, np.ones(2)))
        tile = _skin_beyond(tile, _tile_mask(frame, expression, _RIM) * _below_hair(frame, expression))
        tiles.append(np.clip(np.rint(tile), 0, 255).astype(np.uint8))
    return np.stack(tiles)


def _skin_beyond(tile: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Continue the skin beyond the mask, so that no donor's hair or background is drawn where a face goes on."""
    beyond = np.zeros_like(tile)
    known = np.zeros_like(mask)
    for sigma in _RIM_SIGMAS:  # from near to far, each where the nearer ones do not reach
        weight = cv2.GaussianBlur(mask, (0, 0), sigma)
        colour = cv2.GaussianBlur(tile * mask[..., None], (0, 0), sigma) / (weight[..., None] + 1e-6)
        take = (1 - known) * np.clip(weight * 4, 0, 1)
        beyond += colour * take[..., None]
        known += take
    beyond /= known[..., None] + 1e-6
    whole: NDArray[np.float32] = beyond + (tile - beyond) * mask[..., None]
    return whole


def _average(
    layers: Sequence[NDArray[np.float32]], mask: NDArray[np.float32], like: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Average pictures after giving each the same light: the low frequencies of their common mean."""
    both = [each.mean(0) for each in layers]
    mean = np.mean(both, 0)
    alike = [picture * _ratio(mean, picture, mask) for picture in both]
    average: NDArray[np.float32] = stats.trim_mean(alike, _TRIMMED, 0)  # no fringe and no glasses of one donor
    return average


def _ratio(wanted: NDArray[np.float32], picture: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a picture is multiplied with to have another one's low frequencies."""
    return np.clip((_low(wanted, mask) + 2) / (_low(picture, mask) + 2), 0.3, 3.0)


def _low(picture: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    weight = mask[..., None]
    mean = (picture * weight).sum((0, 1)) / weight.sum()
    blurred = cv2.GaussianBlur(picture * weight, (0, 0), _LIGHT_SIGMA) + 1e-3 * mean
    low: NDArray[np.float32] = blurred / (cv2.GaussianBlur(mask, (0, 0), _LIGHT_SIGMA)[..., None] + 1e-3)
    return low


def _tile_mask(frame: Frame, expression: int, shrink: int = 6) -> NDArray[np.float32]:
    whole = outline_mask(frame.frame[expression], shrink, 3)
    mask: NDArray[np.float32] = cv2.remap(whole, _tile_centres(frame), None, cv2.INTER_LINEAR)
    return mask


def _mouth_mask(frame: Frame, expression: int) -> NDArray[np.float32]:
    """One over the mouth, falling to zero at nose, cheeks and chin."""
    lips = frame.frame[expression][48:60]
    centre, spread = lips.mean(0), lips.max(0) - lips.min(0)
    x, y = np.moveaxis((_tile_centres(frame) - centre) / (0.75 * spread[0]), -1, 0)
    mask: NDArray[np.float32] = np.clip(1.6 - 1.6 * np.sqrt(x**2 + (y * 1.25) ** 2), 0, 1).astype(np.float32)
    return mask


def _below_brows(frame: Frame, expression: int) -> NDArray[np.float32]:
    """Zero above the eyebrows, one below their upper edge: (h, 1, 1)."""
    return _below(_brows(frame, expression), _BROW_RAMP)[..., None]


def _below_hair(frame: Frame, expression: int) -> NDArray[np.float32]:
    """One on the part of the forehead that all donors show, zero above, where some have hair: (h, 1)."""
    brows = _brows(frame, expression)
    return _below(brows - _BARE * (frame.to_tile(frame.frame[expression])[8, 1] - brows), _HAIR_RAMP)


def _brows(frame: Frame, expression: int) -> float:
    """Row of a tile at which the eyebrows begin."""
    return float(frame.to_tile(frame.frame[expression][17:27])[:, 1].min())


def _below(row: float, ramp: int) -> NDArray[np.float32]:
    """One below a row of a tile, falling to zero above it: (h, 1)."""
    rows = np.arange(TILE_SHAPE[0], dtype=np.float32)
    below: NDArray[np.float32] = np.clip((rows - row) / ramp + 1, 0, 1).astype(np.float32)
    return below[:, None]


def _write(output: Path, atlas: Atlas, frame: Frame, report: dict[str, object]) -> None:
    write_personas(output, atlas, frame)
    write_atomically(output / REPORT_FILE, json.dumps(report, indent=1).encode())
    sheet = np.concatenate([atlas.sheet("to_male"), atlas.sheet("to_female")], 1)
    Image.fromarray(sheet).reduce(2).save(output / SHEET_FILE, quality=90)
