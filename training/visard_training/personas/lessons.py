"""The training examples (lessons) of a persona generator: faces with their targets, on disk and in varied batches.

A lesson is one face, turned and shifted a little, with the targets for both genders. Batches vary light, colour and
sharpness, and put synthetic fringes, objects and glasses in front of the faces.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from visard_errors import DataError
from visard_preprocess.files import replace_atomically
from visard_preprocess.machine import cores
from visard_training.data.faces import GENDERS, Sample, read_faces
from visard_training.personas.donors import OLD_AGE, age_of, skin_lightness, tone_of
from visard_training.personas.frame import DAMAGED, SHAPES_FILE, Frame, open_arrays, read_frame
from visard_training.personas.shapes import OPEN_MOUTH, mouth_gap, turned, with_forehead
from visard_training.personas.targets import MASK_SIZE, face_parts, targets
from visard_training.runs.progress import Progress

LESSONS_FILE = "lessons.npz"
MAX_TURNED = 0.3  # beyond it the landmarks are wrong
UNKNOWN = -1  # a trait that nobody knows

_TURN, _SCALE, _SHIFT = 6.0, 0.06, 10.0  # deviations: degrees, log of the size, pixels
_EYES = ((47.5, 60.0), (80.5, 60.0))  # where an aligned face's eyes lie, in cells of 128


class Batch(NamedTuple):
    """Pictures and what the generator should say about them.

    Attributes:
        pictures: (N, 3, 128, 128) float32 in −1..1.
        genders: (N,) float32: 1 for a male persona, −1 for a female one.
        fields: (N, 4, 64, 64) float32 moves in pixels of the crop: surroundings x, y, persona x, y.
        masks: (N, 2, 128, 128) float32 in 0..1: face and bare skin.
    """

    pictures: Tensor
    genders: Tensor
    fields: Tensor
    masks: Tensor


@dataclass(frozen=True, eq=False)
class Lessons:
    """All lessons, in memory.

    Attributes:
        pictures: (L, 128, 128, 3) uint8 RGB.
        fields: (L, 2, 4, 64, 64) float16, for a female and for a male persona.
        masks: (L, 2, 2, 128, 128) uint8.
        traits: (L, 3) int8: tone, old, open; `UNKNOWN` where nobody knows.
        digest: of the faces they came from.
    """

    pictures: NDArray[np.uint8] = field(repr=False)
    fields: NDArray[np.float16] = field(repr=False)
    masks: NDArray[np.uint8] = field(repr=False)
    traits: NDArray[np.int8] = field(repr=False)
    digest: str

    def __len__(self) -> int:
        return len(self.pictures)

    def pictures_and_traits(self, size: int, side_px: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw and vary `size` small pictures: (N, 3, side_px, side_px) float32 in −1..1 and (N, 3) int64 traits."""
        rows = torch.randint(len(self), (size,), generator=random).numpy()
        pictures = torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2).float() / 255
        pictures = functional.avg_pool2d(pictures, MASK_SIZE // side_px)
        flip = torch.rand(size, generator=random) < 0.5
        pictures[flip] = pictures[flip].flip(3)
        return relight(pictures, random) * 2 - 1, torch.from_numpy(self.traits[rows].astype(np.int64))

    def batch(self, size: int, random: torch.Generator) -> Batch:
        """Draw and vary `size` lessons."""
        rows = torch.randint(len(self), (size,), generator=random).numpy()
        side = torch.randint(2, (size,), generator=random)
        pictures = torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2).float() / 255
        fields = torch.from_numpy(self.fields[rows, side.numpy()]).float()
        masks = torch.from_numpy(self.masks[rows, side.numpy()]).float() / 255
        flip = torch.rand(size, generator=random) < 0.5
        pictures[flip], masks[flip] = pictures[flip].flip(3), masks[flip].flip(3)
        fields[flip] = fields[flip].flip(3) * torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(1, 4, 1, 1)
        pictures, masks = put_before(pictures, masks, random)
        pictures = relight(pictures, random)
        return Batch(pictures * 2 - 1, side * 2.0 - 1, fields, masks)


def make_lessons(
    caches: Sequence[Path],
    personas: Path,
    output: Path,
    *,
    tone_caches: Sequence[Path],
    variants: int = 3,
    workers: int | None = None,
    console: Console | None = None,
) -> Lessons:
    """Make the lessons of prepared faces, or read them where they are made already.

    Args:
        caches: folders of `visard train prepare`; their split `train` is used.
        personas: what `visard train personas` made.
        output: folder to keep them in. It will hold pictures of people.
        tone_caches: those of `caches` whose photos are lit well enough to tell the tone of skin.
        variants: of each face.
        workers: processes; one per core by default.
        console: where the progress bar is drawn.

    Raises:
        DataError: a cache or the personas cannot be used.
    """
    frame = read_frame(personas)
    faces = [
        (face, cache in tone_caches)
        for cache in caches
        for face in read_faces(cache)
        if face.split == "train" and turned(with_forehead(face.landmarks)) <= MAX_TURNED
    ]
    digest = hashlib.sha256(repr([(f.path.name, t, variants) for f, t in faces]).encode())
    digest.update((personas / SHAPES_FILE).read_bytes())
    path = output / LESSONS_FILE
    if path.is_file():
        try:
            with open_arrays(path) as d:
                if str(d["digest"]) == digest.hexdigest():
                    return Lessons(d["pictures"], d["fields"], d["masks"], d["traits"], digest.hexdigest())
        except DAMAGED as error:
            raise DataError(f"'{path}' is damaged ({error}): remove it to make the lessons anew") from error
    workers = min(workers or cores(), len(faces)) or 1
    lessons: list[tuple[NDArray[np.generic], ...]] = []
    with (
        Progress("Making lessons", len(faces), console=console) as progress,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_single) as pool,
    ):
        for made in pool.map(partial(_lessons, frame=frame, variants=variants), faces, range(len(faces)), chunksize=4):
            lessons += made
            progress.advance()
    pictures, fields, masks, traits = (np.stack(each) for each in zip(*lessons, strict=True))
    output.mkdir(parents=True, exist_ok=True)

    def write(new: Path) -> None:
        with new.open("wb") as file:
            np.savez(file, pictures=pictures, fields=fields, masks=masks, traits=traits, digest=digest.hexdigest())

    replace_atomically(path, write)
    return Lessons(pictures, fields, masks, traits, digest.hexdigest())


def _single() -> None:
    cv2.setNumThreads(1)


def _lessons(
    chosen: tuple[Sample, bool], seed: int, frame: Frame, variants: int
) -> list[tuple[NDArray[np.generic], ...]]:
    """All lessons of one face; runs in a process of its own."""
    face, tone_known = chosen
    random = np.random.default_rng(seed)
    picture = np.asarray(Image.open(face.path).convert("RGB"))
    parts = face_parts(picture, with_forehead(face.landmarks), face.gender)
    age = age_of(face)
    tone = tone_of(skin_lightness(picture, parts.shape)) if tone_known else UNKNOWN
    old = UNKNOWN if age is None else int(age >= OLD_AGE)
    traits = np.array([tone, old, mouth_gap(parts.shape) > OPEN_MOUTH], np.int8)
    made: list[tuple[NDArray[np.generic], ...]] = []
    for variant in range(variants):
        strength = 0.0 if variant == 0 else 1.0
        matrix = cv2.getRotationMatrix2D(
            (255.5, 255.5), strength * random.normal(0, _TURN), np.exp(strength * random.normal(0, _SCALE))
        )
        matrix[:, 2] += strength * random.normal(0, _SHIFT, 2)
        moved = parts.moved(matrix)
        both = [targets(moved, gender, frame) for gender in GENDERS]
        fields = np.stack([np.concatenate([t.surroundings, t.persona], -1).transpose(2, 0, 1) for t in both])
        masks = np.stack([np.stack([t.face, t.skin]) for t in both])
        small = cv2.resize(moved.picture, (MASK_SIZE, MASK_SIZE), interpolation=cv2.INTER_AREA)
        made.append((small, fields.astype(np.float16), np.rint(masks * 255).astype(np.uint8), traits))
    return made


def put_before(pictures: Tensor, masks: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put fringes and objects before some faces, which a persona must not cover, and glasses, which it must.

    Args:
        pictures: (N, 3, 128, 128) float32 in 0..1.
        masks: (N, 2, 128, 128) float32: face and bare skin.
        random: decides everything.
    """
    pictures, masks = pictures.clone(), masks.clone()
    kind = torch.rand(len(pictures), generator=random)
    for i in range(len(pictures)):
        if kind[i] < 0.25:
            cover, texture = _fringe(random), _shifted(pictures[i], random)
            masks[i] *= 1 - cover
        elif kind[i] < 0.4:
            other = pictures[int(torch.randint(len(pictures), (1,), generator=random))]
            cover, texture = _blob(random), torch.roll(other, (37, 51), (1, 2))
            masks[i] *= 1 - cover
        elif kind[i] < 0.55:
            cover, texture, lens = _glasses(random)
            masks[i, 1] *= 1 - torch.maximum(cover, lens)
        else:
            continue
        pictures[i] = pictures[i] * (1 - cover) + texture * cover
    return pictures, masks


def relight(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Vary exposure, contrast, colour of light, saturation, sharpness and noise of (N, 3, S, S) pictures in 0..1."""
    n = len(pictures)

    def normal(deviation: float, channels: int = 1) -> Tensor:
        return torch.randn(n, channels, 1, 1, generator=random) * deviation

    dim = (torch.rand(n, 1, 1, 1, generator=random) < 0.2).float()
    exposure = normal(0.2) - dim * torch.rand(n, 1, 1, 1, generator=random) * 2.0
    x = pictures.clamp(1e-4, 1) ** torch.exp(normal(0.12)) * torch.exp(exposure + normal(0.1, 3))
    grey = x.mean(1, keepdim=True)
    saturation = torch.where(torch.rand(n, 1, 1, 1, generator=random) < 0.08, torch.zeros(()), torch.exp(normal(0.2)))
    x = grey + (x - grey) * saturation
    small = functional.interpolate(x, scale_factor=0.5, mode="area")
    soft = functional.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
    x = torch.where(torch.rand(n, 1, 1, 1, generator=random) < 0.2, soft, x)
    for i in (torch.rand(n, generator=random) < 0.2).nonzero().flatten().tolist():
        x[i] += 0.04 * torch.randn(x[i].shape, generator=random)
    return x.clamp(0, 1)


def _uniform(low: float, high: float, random: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=random))


def _fringe(random: torch.Generator) -> Tensor:
    """Where hair hangs into the forehead: (128, 128), one above a jagged line."""
    x = torch.arange(MASK_SIZE) / MASK_SIZE
    line = _uniform(28, 58, random) + sum(
        _uniform(-w, w, random) * torch.sin(2 * torch.pi * (f * x + _uniform(0, 1, random)))
        for f, w in ((0.5, 12), (1, 10), (3, 4), (9, 3))
    )
    line = line + torch.randn(MASK_SIZE, generator=random) * _uniform(0, 3, random)
    side = _uniform(-0.6, 1.0, random)  # some hang over one half alone
    line = line - 40 * ((x - 0.5) * (1 if side > 0 else -1) > abs(side)).float()
    return ((line[None] - torch.arange(MASK_SIZE)[:, None]) / 2).clamp(0, 1)


def _shifted(picture: Tensor, random: torch.Generator) -> Tensor:
    """The picture pulled down, so that its own hair comes to lie on the forehead."""
    by = int(_uniform(14, 34, random))
    return torch.cat([picture[:, :1].expand(-1, by, -1), picture[:, :-by]], 1)


def _blob(random: torch.Generator) -> Tensor:
    """A soft-edged ellipse somewhere over the face."""
    y, x = torch.meshgrid(torch.arange(MASK_SIZE), torch.arange(MASK_SIZE), indexing="ij")
    angle = _uniform(0, torch.pi, random)
    dx, dy = x - _uniform(25, 103, random), y - _uniform(40, 125, random)
    a = (dx * np.cos(angle) + dy * np.sin(angle)) / _uniform(5, 26, random)
    b = (dy * np.cos(angle) - dx * np.sin(angle)) / _uniform(5, 18, random)
    return ((1 - torch.sqrt(a * a + b * b)) * 6).clamp(0, 1)


def _glasses(random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Frames and tinted lenses: how much they cover, their colour, and where the lenses are."""
    rim, lens = np.zeros((MASK_SIZE, MASK_SIZE), np.float32), np.zeros((MASK_SIZE, MASK_SIZE), np.float32)
    size = np.array([_uniform(11, 17, random), _uniform(8, 14, random)])
    shift = np.array([_uniform(-3, 3, random), _uniform(-2, 4, random)])
    spread, squareness = _uniform(0, 2, random), _uniform(2, 5, random)
    width = int(_uniform(1, 3.9, random))
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    curve = np.stack([np.sign(f(t)) * np.abs(f(t)) ** (2 / squareness) for f in (np.cos, np.sin)], -1)
    for sign, eye in zip((-1, 1), _EYES, strict=True):
        points = np.rint((np.array(eye) + shift + [sign * spread, 0] + curve * size) * 16).astype(np.int32)
        cv2.fillPoly(lens, [points], 1.0, cv2.LINE_AA, 4)
        cv2.polylines(rim, [points], True, 1.0, width, cv2.LINE_AA, 4)
    y = int(_EYES[0][1] + shift[1] - 2)
    left, right = int(_EYES[0][0] + shift[0] - spread - size[0]), int(_EYES[1][0] + shift[0] + spread + size[0])
    for start, end in (((left, y), (left - 22, y - 3)), ((right, y), (right + 22, y - 3)), ((60, y), (68, y))):
        cv2.line(rim, start, end, 1.0, width, cv2.LINE_AA)
    tint = 0.0 if _uniform(0, 1, random) < 0.6 else _uniform(0.3, 1.0, random)
    rims, lenses = torch.from_numpy(rim).clamp(0, 1), torch.from_numpy(lens).clamp(0, 1)
    colour = torch.rand(3, 1, 1, generator=random) * _uniform(0.05, 0.9, random)
    return torch.maximum(rims, lenses * tint), colour.expand(-1, MASK_SIZE, MASK_SIZE), lenses
