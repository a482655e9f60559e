"""Makes the personas: faces of nobody, each the average of many donors, laid into one common frame.

    prepared donors ─► shape and texture in the frame ─► even light ─► groups by gender, tone and age ─► averages ─► atlas

Donors should be generated portraits, so that no real person stands behind any pixel. It knows nothing about the faces
that personas will replace.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import DataError
from visard_export.networks.persona import AGES, EXPRESSIONS, TILE_SHAPE, TONES, Atlas
from visard_preprocess.geometry import CROP_SIZE
from visard_training.data import GENDERS, Gender, Sample, read_faces
from visard_training.shapes import (
    OPEN_MOUTH,
    OUTLINE,
    Shape,
    ShapeModel,
    mirrored,
    mouth_gap,
    outline_mask,
    moves_map,
    pixel_centres,
    sample,
    turned,
    with_forehead,
)
from visard_training.state import write_atomically

ATLAS_FILE, SHAPES_FILE, REPORT_FILE, SHEET_FILE = "atlas.npz", "shapes.npz", "report.json", "personas.jpg"
TONE_LIMITS = (60.0, 48.0)  # CIE L* of cheeks and nose in good light below which skin is of middle and of dark tone
OLD_AGE = 50  # years from which a donor counts as old
MAX_TURNED = 0.1  # donors that are turned further show one side only
FEWEST_DONORS = 8

_LIGHT_SIGMA = 30  # pixels of the crop: what varies more slowly is light
_SKIN_SIGMA = 2.0  # pixels of a tile: what varies faster is pores and lashes, which an average loses
_RIM, _RIM_SIGMAS = 14, (4.0, 12.0, 36.0, 90.0)  # pixels of the crop, of a tile: where skin is continued, how
_MARGIN = 18  # pixels of the crop around the mean outline that a tile still shows
_OUTLIERS = 0.25  # share of a group's donors that are least like it: glasses, beards, hair in the face


@dataclass(frozen=True, kw_only=True)
class PersonaOptions:
    """How personas are made.

    Attributes:
        count: of personas in each group of tone and age, for each gender.
        donors: averaged in each of them, at least 8.
        push: how far a persona goes beyond its gender's mean, away from the other's, in units of their difference.
        skin: how much of one donor's finest detail (pores, lashes) comes back on top of the average.
        seed: decides who is averaged with whom.
    """

    count: int = 4
    donors: int = 8
    push: float = 0.35
    skin: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.donors < FEWEST_DONORS:
            raise ValueError(f"donors must be at least {FEWEST_DONORS}, not {self.donors}: fewer are recognised")
        if self.count < 1 or self.push < 0 or not 0 <= self.skin <= 1:
            raise ValueError(f"count must be positive, push not negative, skin in 0..1: {self}")


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the personas of an atlas lie, and the shapes that a generator is taught with.

    Attributes:
        model: what a shape may keep of a face.
        frame: (2, 75, 2), closed and open mouth: the frame that all personas are laid into, in pixels of the crop.
        persona: gender → (2, 75, 2): the mean shape of its personas.
        corner: top left of a tile, in pixels of the crop.
        scale: pixels of the crop in a pixel of a tile.
    """

    model: ShapeModel = field(repr=False)
    frame: NDArray[np.float64] = field(repr=False)
    persona: dict[Gender, NDArray[np.float64]] = field(repr=False)
    corner: tuple[float, float]
    scale: float

    def to_tile(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Pixels of the crop → pixels of a tile, both counted from the centre of the first one."""
        return (points - np.array(self.corner)) / self.scale


@dataclass(frozen=True, kw_only=True, eq=False)
class _Donor:
    picture: NDArray[np.uint8]
    shape: Shape
    gender: Gender
    old: bool
    open: bool
    lightness: float


def make_personas(
    caches: Sequence[Path],
    shape_caches: Sequence[Path],
    output: Path,
    options: PersonaOptions | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> Atlas:
    """Make an atlas of personas, with the shapes that go with it, a contact sheet and a report.

    Args:
        caches: prepared donors (`visard train prepare`) with a column `age` or `age_guess`; split `test` is left out.
        shape_caches: prepared faces of all poses and expressions, whose points alone are used.
        output: folder to fill.
        options: how to make them.
        report: takes a line of progress.

    Raises:
        DataError: a cache cannot be used, or a group has too few donors.
    """
    options = options or PersonaOptions()
    output.mkdir(parents=True, exist_ok=True)
    shapes = [with_forehead(s.landmarks) for c in shape_caches for s in read_faces(c) if s.split != "test"]
    donors = _read_donors(caches)
    report(f"{len(donors)} donors that look at the camera, {len(shapes)} faces for the shapes")
    frame = _frame(donors, ShapeModel.fit(shapes), options.push)
    rng = np.random.default_rng(options.seed)
    pictures: dict[Gender, NDArray[np.uint8]] = {}
    groups: dict[str, int] = {}
    layers = {id(donor): _layers(donor, frame) for donor in donors}
    means = {g: _mean_layers([layers[id(d)] for d in donors if d.gender == g]) for g in GENDERS}
    for gender in GENDERS:
        other = GENDERS[1 - GENDERS.index(gender)]
        tiles = []
        for tone in range(TONES):
            for age in range(AGES):
                of_gender = [d for d in donors if d.gender == gender]
                members = _nearest(of_gender, tone, bool(age), 2 * options.donors)
                members = _typical(members, layers)
                groups[f"{gender} tone {tone} {'old' if age else 'young'}"] = len(members)
                faces = [
                    _persona(members, of_gender, tone, layers, means[gender], means[other], frame, gender, options, rng)
                    for _ in range(options.count)
                ]
                tiles.append(np.stack(faces, 1))  # (expressions, count, h, w, 3)
                report(f"{gender}, tone {tone}, {'old' if age else 'young'}: {len(members)} donors")
        pictures[gender] = np.stack(tiles).reshape(TONES, AGES, EXPRESSIONS, options.count, *TILE_SHAPE, 3)
    atlas = Atlas(to_female=pictures["female"], to_male=pictures["male"], corner=frame.corner, scale=frame.scale)
    _write(output, atlas, frame, {"options": asdict(options), "donors": groups})
    return atlas


def read_frame(folder: Path) -> Frame:
    """Read the shapes that `make_personas` left.

    Raises:
        DataError: the folder is missing or damaged.
    """
    try:
        with np.load(folder / SHAPES_FILE, allow_pickle=False) as d:
            return Frame(
                model=ShapeModel(d["mean"], d["modes"]),
                frame=d["frame"],
                persona={gender: d[gender] for gender in GENDERS},
                corner=(float(d["corner"][0]), float(d["corner"][1])),
                scale=float(d["scale"]),
            )
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"'{folder}' holds no personas ({error}): make them with `visard train personas`") from error


def read_atlas(folder: Path) -> Atlas:
    """Read the personas that `make_personas` left.

    Raises:
        DataError: the folder is missing or damaged.
    """
    frame = read_frame(folder)
    try:
        with np.load(folder / ATLAS_FILE, allow_pickle=False) as d:
            return Atlas(to_male=d["to_male"], to_female=d["to_female"], corner=frame.corner, scale=frame.scale)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"'{folder}' holds no personas ({error}): make them with `visard train personas`") from error


def _read_donors(caches: Sequence[Path]) -> list[_Donor]:
    donors = []
    for cache in caches:
        for face in read_faces(cache):
            if face.split == "test" or turned(with_forehead(face.landmarks)) > MAX_TURNED:
                continue
            age = age_of(face)
            if age is None:
                raise DataError(f"'{cache}' does not say how old '{face.path.name}' looks: add a column age")
            donors.append(_donor(face, age))
    for gender in GENDERS:
        lightness = [d.lightness for d in donors if d.gender == gender]
        if len(lightness) < 4 * FEWEST_DONORS:
            raise DataError(f"{len(lightness)} usable donors are '{gender}', at least {4 * FEWEST_DONORS} are needed")
    return donors


def age_of(face: Sample) -> float | None:
    """How old a face is or looks, in years, where its manifest says it in `age` or `age_guess`."""
    for column in ("age", "age_guess"):
        with suppress(KeyError, ValueError):
            return float(face.groups[column])
    return None


def _donor(face: Sample, age: float) -> _Donor:
    picture = np.asarray(Image.open(face.path).convert("RGB"))
    shape = with_forehead(face.landmarks)
    return _Donor(
        picture=picture,
        shape=shape,
        gender=face.gender,
        old=age >= OLD_AGE,
        open=mouth_gap(shape) > OPEN_MOUTH,
        lightness=skin_lightness(picture, shape),
    )


def skin_lightness(picture: NDArray[np.uint8], shape: Shape) -> float:
    """Median CIE L* (0..100) of cheeks and nose: the skin's tone under the photo's own light.

    Args:
        picture: (512, 512, 3) uint8 RGB.
        shape: of its face.
    """
    rows = np.mgrid[: picture.shape[0], : picture.shape[1]][0]
    cheeks = outline_mask(shape, 30) > 0
    cheeks &= (rows > shape[36:48, 1].mean() + 15) & (rows < shape[30:36, 1].max())
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    return float(np.median(lab[..., 0][cheeks])) * 100 / 255 if cheeks.any() else 50.0


def _frame(donors: Sequence[_Donor], model: ShapeModel, push: float) -> Frame:
    """Mean shapes of both genders with closed and with open mouth; the frame lies halfway between them."""
    mean = {
        gender: np.stack([_mean_shape([d for d in donors if d.gender == gender], is_open) for is_open in (False, True)])
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


def _mean_shape(donors: Sequence[_Donor], is_open: bool) -> Shape:
    """Mean of those whose mouth is open or closed, and of their mirrored pictures."""
    mean: Shape = np.mean([m for d in donors if d.open == is_open for m in (d.shape, mirrored(d.shape))], 0)
    return mean


def _tile_centres(frame: Frame) -> NDArray[np.float32]:
    height, width = TILE_SHAPE
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    return (grid * frame.scale + np.array(frame.corner)).astype(np.float32)


def _into_tile(picture: NDArray[np.uint8], source: Shape, to: Shape, frame: Frame) -> NDArray[np.float32]:
    """Lay a picture with the points `source` into a tile, so that they come to lie at `to`."""
    whole = moves_map(to, source) + pixel_centres((CROP_SIZE, CROP_SIZE), np.ones(2))
    where = cv2.remap(whole, _tile_centres(frame), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(sample(picture, where).astype(np.float32), 0, 255)


def _layers(donor: _Donor, frame: Frame) -> NDArray[np.float32]:
    """The donor in the frame with closed and with open mouth, and mirrored: (2, h, w, 3), evenly lit by symmetry."""
    both = []
    for expression in range(EXPRESSIONS):
        to = frame.frame[expression]
        there = _into_tile(donor.picture, donor.shape, to, frame)
        mirror = _into_tile(donor.picture[:, ::-1], mirrored(donor.shape), to, frame)
        both.append(np.stack([there, mirror]))
    return np.stack(both)  # (2, 2, h, w, 3)


def _mean_layers(layers: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.mean([each.mean(1) for each in layers], 0)


def tone_of(lightness: float) -> int:
    """Group of skin tone, 0 for light to 2 for dark, of skin that is evenly and brightly lit."""
    return int(lightness < TONE_LIMITS[0]) + int(lightness < TONE_LIMITS[1])


def _nearest(donors: Sequence[_Donor], tone: int, old: bool, n: int) -> list[_Donor]:
    """The donors of an age group and a tone, filled up to `n` with those of its age whose tone is nearest."""
    of_age = [d for d in donors if d.old == old]
    middle = float(np.median([d.lightness for d in donors if tone_of(d.lightness) == tone] or [50.0]))
    order = sorted(of_age, key=lambda d: (tone_of(d.lightness) != tone, abs(d.lightness - middle)))
    inside = sum(tone_of(d.lightness) == tone for d in of_age)
    return order[: max(n, inside)]


def _typical(members: list[_Donor], layers: dict[int, NDArray[np.float32]]) -> list[_Donor]:
    """Leave out those that differ most from the rest: glasses, beards, hair and hands in the face."""
    bands = np.array([_high_band(layers[id(d)][0].mean(0).mean(-1), 6.0) for d in members])
    inner = bands - np.median(bands, 0)
    distance = np.sqrt((inner**2).mean((1, 2)))
    keep = max(FEWEST_DONORS + 2, round(len(members) * (1 - _OUTLIERS)))
    return [members[i] for i in np.argsort(distance)[:keep]]


def _high_band(grey: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return grey - cv2.GaussianBlur(grey, (0, 0), sigma)


def _persona(
    members: list[_Donor],
    of_gender: list[_Donor],
    tone: int,
    layers: dict[int, NDArray[np.float32]],
    own_mean: NDArray[np.float32],
    other_mean: NDArray[np.float32],
    frame: Frame,
    gender: Gender,
    options: PersonaOptions,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Average some donors: (2, h, w, 3) with closed and with open mouth."""
    chosen = [members[i] for i in rng.choice(len(members), min(options.donors, len(members)), replace=False)]
    typical = members[: max(1, len(members) // 2)]  # the most typical: no fringe, no glasses
    detail = layers[id(typical[int(rng.integers(len(typical)))])]
    light = np.mean([d.lightness for d in chosen])
    by_tone = sorted(of_gender, key=lambda d: abs(d.lightness - light))
    own = {is_open: _mean_shape(of_gender, is_open) for is_open in (False, True)}
    features = np.mean([m - own[d.open] for d in chosen for m in (d.shape, mirrored(d.shape))], 0)
    features[OUTLINE] = 0  # the outline is the generator's
    tiles = []
    for expression in range(EXPRESSIONS):
        mask = _tile_mask(frame, expression)
        base = _average([layers[id(d)][expression] for d in chosen], mask, own_mean[expression])
        mouths = [d for d in by_tone if d.open == bool(expression)][: options.donors]
        mouth = _average([layers[id(d)][expression] for d in mouths], mask, own_mean[expression])
        weight = _mouth_mask(frame, expression)[..., None]
        mouth = mouth * _ratio(base, mouth, mask)
        tile = base * (1 - weight) + mouth * weight
        tile = tile + options.push * (own_mean[expression] - other_mean[expression])
        fine = detail[expression][0]
        tile = tile + options.skin * (fine - cv2.GaussianBlur(fine, (0, 0), _SKIN_SIGMA)) * (1 - weight)
        to = frame.to_tile(frame.frame[expression] + features)
        moves = moves_map(to, frame.to_tile(frame.frame[expression]), TILE_SHAPE)
        tile = sample(tile.astype(np.float32), moves + pixel_centres(TILE_SHAPE, np.ones(2)))
        tile = _skin_beyond(tile, _tile_mask(frame, expression, _RIM))
        tiles.append(np.clip(np.rint(tile), 0, 255).astype(np.uint8))
    return np.stack(tiles)


def _skin_beyond(tile: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Continue the skin beyond the outline, so that no donor's hair or background is drawn where a face is wider."""
    beyond = np.zeros_like(tile)
    known = np.zeros_like(mask)
    for sigma in _RIM_SIGMAS:  # from near to far, each where the nearer ones do not reach
        weight = cv2.GaussianBlur(mask, (0, 0), sigma)
        colour = cv2.GaussianBlur(tile * mask[..., None], (0, 0), sigma) / (weight[..., None] + 1e-6)
        take = (1 - known) * np.clip(weight * 4, 0, 1)
        beyond += colour * take[..., None]
        known += take
    beyond /= known[..., None] + 1e-6
    return beyond + (tile - beyond) * mask[..., None]


def _average(
    layers: Sequence[NDArray[np.float32]], mask: NDArray[np.float32], like: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Average pictures after giving each the same light: the low frequencies of their common mean."""
    both = [each.mean(0) for each in layers]
    mean = np.mean(both, 0)
    return np.mean([picture * _ratio(mean, picture, mask) for picture in both], 0)


def _ratio(wanted: NDArray[np.float32], picture: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a picture is multiplied with to have another one's low frequencies."""
    return np.clip((_low(wanted, mask) + 2) / (_low(picture, mask) + 2), 0.3, 3.0)


def _low(picture: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    weight = mask[..., None]
    mean = (picture * weight).sum((0, 1)) / weight.sum()
    blurred = cv2.GaussianBlur(picture * weight, (0, 0), _LIGHT_SIGMA) + 1e-3 * mean
    return blurred / (cv2.GaussianBlur(mask, (0, 0), _LIGHT_SIGMA)[..., None] + 1e-3)


def _tile_mask(frame: Frame, expression: int, shrink: int = 6) -> NDArray[np.float32]:
    whole = outline_mask(frame.frame[expression], shrink, 3)
    return cv2.remap(whole, _tile_centres(frame), None, cv2.INTER_LINEAR)


def _mouth_mask(frame: Frame, expression: int) -> NDArray[np.float32]:
    """One over the mouth, falling to zero at nose, cheeks and chin."""
    lips = frame.frame[expression][48:60]
    centre, spread = lips.mean(0), lips.max(0) - lips.min(0)
    x, y = np.moveaxis((_tile_centres(frame) - centre) / (0.75 * spread[0]), -1, 0)
    return np.clip(1.6 - 1.6 * np.sqrt(x**2 + (y * 1.25) ** 2), 0, 1).astype(np.float32)


def _write(output: Path, atlas: Atlas, frame: Frame, report: dict[str, object]) -> None:
    np.savez(
        output / SHAPES_FILE,
        mean=frame.model.mean,
        modes=frame.model.modes,
        frame=frame.frame,
        corner=frame.corner,
        scale=frame.scale,
        **frame.persona,
    )
    np.savez_compressed(output / ATLAS_FILE, to_male=atlas.to_male, to_female=atlas.to_female)
    write_atomically(output / REPORT_FILE, json.dumps(report, indent=1).encode())
    sheet = np.concatenate([atlas.sheet("to_male"), atlas.sheet("to_female")], 1)
    Image.fromarray(sheet).save(output / SHEET_FILE, quality=90)
