"""The served persona graph: a face and a number in, the same picture with a persona's face out.

    face ─► trunk ─► where the surroundings come from ─► moved face ──────────────────┐
      │         ├──► where each pixel lies in the personas' frame ─► persona ─► lit ─┐ │
      │         └──► masks: face, bare skin                                          ▼ ▼
      └───► traits ─► group of personas ─► with the number: which one             blended ─► result

Of the face itself only this reaches the picture inside the mask: where things lie (smooth fields at an eighth of the
size), the low frequencies of light and skin colour, how sharp, noisy and colourful the photo is, and a choice of one
of twelve groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visard_export.networks.architectures import IMAGE_SIZE
from visard_export.networks.atlas import AGES, DIRECTIONS, EXPRESSIONS, ROWS, TILE_SHAPE, TONES, Direction, decode_sheet
from visard_export.networks.persona import TRAITS_SIZE, PersonaGenerator
from visard_export.options import Precision
from visard_export.precision import dtype_of, in_precision

# The part of the crop in which a face can lie: left, top, right, bottom; multiples of 8. Outside it nothing changes.
WINDOW = (48, 64, 464, 504)
_RAMP = 24  # pixels over which the changes fade towards the window's edge
SURROUNDINGS_SCALE, PERSONA_SCALE = 0.1, 0.3  # of the crop's side: what an output of one means

_LIGHT_STEP = 8  # light is computed on a picture reduced so many times
_LIGHT_SIGMA = 64.0  # pixels of the crop: finer shadows are those of a face
_LIGHT_OFFSET = 2.0  # grey levels: keeps ratios of dark tones calm
_LIGHT_RANGE = (0.02, 3.0)
_SHARPEST = 1.25  # how many times its own detail a persona may be given
_GREY_LEVELS = 5.0  # mean difference between the channels of skin below which a photo loses its colour
_FURTHEST = 0.12  # how far surroundings may move, in halves of the crop's side: less than the window's margin
_CALM, _NOISIEST = 0.05, 20.0  # grey levels, squared and not: below the first there is no noise
# Added to the mask's logits, so that where the trunk is unsure the persona covers rather than shows: a rim of the face
# that stays is what recognisers find people by (docs/decisions.md, 28).
_COVER = 3.0
_EPSILON = 1e-3
_TILE_EDGE = 1 - 1 / min(TILE_SHAPE)


class PersonaGraph(nn.Module):
    """`generator_to_*`: (N, 512, 512, 3) uint8 RGB and (N, 1) int32 → (N, 512, 512, 3) uint8 RGB.

    The number chooses the persona of the face's group, modulo how many there are; below zero the graph draws one.
    In `fp16` the trunk's and the traits' layers run in half, everything else in float32.

    Args:
        network: has both directions.
        directions: those that the graph can draw, one for `forward`.
        precision: of the layers.
    """

    inputs = ("image", "persona")
    outputs = ("swapped",)
    size = IMAGE_SIZE

    tiles: Tensor
    counts: Tensor
    starts: Tensor
    signs: Tensor
    position: Tensor
    ramp: Tensor
    coarse_ramp: Tensor
    window_grid: Tensor
    per_unit: Tensor
    unmoved: Tensor
    blur_rows: Tensor
    blur_columns: Tensor
    noise: Tensor

    def __init__(
        self, network: PersonaGenerator, directions: Sequence[Direction], precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        self.architecture = network.architecture
        self.network = in_precision(network.trunk, precision)
        self.traits = in_precision(network.traits, precision)
        # Half holds the levels 0..255 exactly, and TensorRT has bytes at a network's borders alone.
        sheets = [
            torch.from_numpy(decode_sheet(getattr(network, f"atlas_{direction}").numpy())).half()
            for direction in directions
        ]
        sizes = torch.tensor([len(sheet) for sheet in sheets])
        self.register_buffer("tiles", torch.cat(sheets))
        self.register_buffer("counts", sizes // ROWS)
        self.register_buffer("starts", sizes.cumsum(0) - sizes)
        # The trunk is told the direction by the sign of a third plane of positions.
        self.register_buffer("signs", torch.tensor([1.0 if each == DIRECTIONS[0] else -1.0 for each in directions]))
        size = network.architecture.trunk.size
        self.register_buffer("position", position_planes(size))
        left, top, right, bottom = WINDOW
        rows, columns = bottom - top, right - left
        step = self.step = IMAGE_SIZE // size
        self.cells = slice(top // step, bottom // step), slice(left // step, right // step)
        coarse = self.coarse = 2 * step
        x, y = torch.arange(columns // step) + 0.5, torch.arange(rows // step) + 0.5
        near = torch.minimum(torch.minimum(x, x.flip(0))[None], torch.minimum(y, y.flip(0))[:, None])
        self.register_buffer("ramp", (near * step / _RAMP).clamp(0, 1)[None, None])
        self.register_buffer("coarse_ramp", functional.avg_pool2d(self.ramp, 2))
        # Where pictures are sampled is counted in units in which a picture spans −1..1: here the crop, there a tile.
        self.register_buffer("window_grid", sampling_grid(IMAGE_SIZE)[:, top:bottom, left:right])
        corner, scale = network.placement[:2].float(), float(network.placement[2])
        tile = torch.tensor([TILE_SHAPE[1], TILE_SHAPE[0]])
        per_unit = IMAGE_SIZE / scale / tile
        middle = (((IMAGE_SIZE - 1) / 2 - corner) / scale + 0.5) * 2 / tile - 1
        self.register_buffer("per_unit", 2 * PERSONA_SCALE * per_unit.view(1, 2, 1, 1))
        unmoved = position_planes(IMAGE_SIZE // coarse) * per_unit.view(1, 2, 1, 1) + middle.view(1, 2, 1, 1)
        self.register_buffer(
            "unmoved", unmoved[:, :, top // coarse : bottom // coarse, left // coarse : right // coarse]
        )
        self.register_buffer("blur_rows", _blur_matrix(rows // _LIGHT_STEP))
        self.register_buffer("blur_columns", _blur_matrix(columns // _LIGHT_STEP).T)
        self.register_buffer("noise", _noise(rows, columns))

    def forward(self, image: Tensor, persona: Tensor) -> Tensor:
        """Draw the persona into the picture."""
        return self.draw(image.float(), persona).to(torch.uint8)  # cast first: TensorRT has bytes at the borders alone

    def draw(self, levels: Tensor, persona: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Draw the persona into pictures that are no bytes yet, or no more.

        Args:
            levels: (N, 512, 512, 3) float32 in 0..255, RGB.
            persona: (N, 1) int32, as above.
            chosen: (N,) int64, which of the graph's directions each face gets; the first by default.

        Returns:
            The same shape and range; what is behind the point is to be dropped.
        """
        photo = levels.permute(0, 3, 1, 2)
        small = functional.avg_pool2d(photo, self.step) / 127.5 - 1
        # One for each picture, without asking the bytes for their shape, which TensorRT may refuse.
        if chosen is None:
            chosen = torch.zeros_like(persona[:, 0], dtype=torch.int64)
        position = self.position + torch.zeros_like(small[:, :2])
        sign = torch.index_select(self.signs, 0, chosen).view(-1, 1, 1, 1)
        dtype = dtype_of(self.network)
        planes = torch.cat([small, position, sign * position[:, 1:]], 1).to(dtype)
        output = self.network(planes).float()[:, :, self.cells[0], self.cells[1]]
        mask = torch.sigmoid(output[:, 4:5] + _COVER) * self.ramp
        skin = torch.sigmoid(output[:, 5:]) * self.ramp
        fields = functional.avg_pool2d(output[:, :4], 2)  # the size that they are taught at: finer is only their noise

        # A picture that is moved by more than its margin would show what lies beyond its edge.
        moves = (fields[:, :2] * (2 * SURROUNDINGS_SCALE)).clamp(-_FURTHEST, _FURTHEST) * self.coarse_ramp
        around = _sampled(photo, _enlarged(moves, self.coarse).permute(0, 2, 3, 1) + self.window_grid)
        there = functional.avg_pool2d(around, _LIGHT_STEP)
        face_weight = self._reduced(mask) + _EPSILON
        skin_weight = self._reduced(mask * skin) + _EPSILON * face_weight

        tile = _coloured_like(there, skin_weight, self._tile(small.to(dtype), persona, chosen))
        # Beyond a tile its skin goes on: what is kept within the outermost pixels' centres needs no other padding.
        where = (self.unmoved + fields[:, 2:] * self.per_unit).clamp(-_TILE_EDGE, _TILE_EDGE)
        where = _enlarged(where, self.coarse)
        face = _sampled(tile, where.permute(0, 2, 3, 1))
        face = face * self._light(there, skin_weight, face, face_weight)
        detail = self._detail(around, face, skin_weight / skin_weight.sum((2, 3), keepdim=True))
        window = around + (face + detail - around) * _enlarged(mask, self.step)

        left, top, right, bottom = WINDOW
        middle = torch.cat([photo[:, :, top:bottom, :left], window, photo[:, :, top:bottom, right:]], 3)
        swapped = torch.cat([photo[:, :, :top], middle, photo[:, :, bottom:]], 2)
        # Rounded: most of the result is a photo sampled between its pixels, which truncation would darken.
        return (swapped + 0.5).clamp(0.0, 255.0).permute(0, 2, 3, 1)

    def _reduced(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, _LIGHT_STEP // self.step)

    def _tile(self, small: Tensor, persona: Tensor, chosen: Tensor) -> Tensor:
        """Choose a tile for each face: (N, 3, 320, 240) float32."""
        traits = self.traits(functional.avg_pool2d(small, small.shape[-1] // TRAITS_SIZE)).float()
        tone = traits[:, :TONES].argmax(1)
        old, opened = ((traits[:, TONES + i] > 0).long() for i in range(2))
        count = torch.index_select(self.counts, 0, chosen)
        drawn = torch.minimum((torch.rand_like(traits[:, 0]) * count).long(), count - 1)
        number = persona[:, 0].long()
        number = torch.where(number < 0, drawn, number.clamp(min=0) % count)
        group = (tone * AGES + old) * EXPRESSIONS + opened
        index = torch.index_select(self.starts, 0, chosen) + group * count + number
        return torch.index_select(self.tiles, 0, index).float()

    def _light(self, there: Tensor, skin_weight: Tensor, face: Tensor, face_weight: Tensor) -> Tensor:
        """What a persona is multiplied with to stand in the photo's light."""
        here = functional.avg_pool2d(face, _LIGHT_STEP)
        wanted, own = self._low(there, skin_weight), self._low(here, face_weight)
        light = ((wanted + _LIGHT_OFFSET) / (own + _LIGHT_OFFSET)).clamp(*_LIGHT_RANGE)
        return _enlarged(light, _LIGHT_STEP)

    def _low(self, picture: Tensor, weight: Tensor) -> Tensor:
        """Low frequencies of a reduced picture where the weight is; towards its weighted mean elsewhere."""
        mean = (picture * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True)
        both = self.blur_rows @ torch.cat([picture * weight, weight], 1) @ self.blur_columns
        return (both[:, :3] + _EPSILON * mean) / (both[:, 3:] + _EPSILON)

    def _detail(self, around: Tensor, face: Tensor, weight: Tensor) -> Tensor:
        """What a persona lacks, or has too much of, to be as sharp and as noisy as the photo: (N, 1, rows, columns)."""
        theirs, ours = (_bands(picture.mean(1, keepdim=True)) for picture in (around, face))
        their_energies, our_energies = ([_energy(band) for band in bands] for bands in (theirs, ours))
        gains = [
            ((_mean(wanted, weight) + _EPSILON) / (_mean(own, weight) + _EPSILON)).sqrt().clamp(max=_SHARPEST)
            for wanted, own in zip(their_energies, our_energies, strict=True)
        ]
        # What even the calmest places of the photo have more of than the persona's is noise: a harmonic mean.
        calm, own_calm = (1 / _mean(1 / (energies[0] + _CALM), weight) for energies in (their_energies, our_energies))
        noise = (calm - gains[0] ** 2 * own_calm).clamp(0.0, _NOISIEST**2).sqrt()
        return ours[0] * (gains[0] - 1) + ours[1] * (gains[1] - 1) + self.noise * noise


def _noise(rows: int, columns: int) -> Tensor:
    """Noise of unit variance, nearly normal: (1, 1, rows, columns) float32, to the bit the same on every machine.

    Sums of twelve uniform bytes; numpy promises that this generator's numbers never change.
    """
    drawn = np.random.RandomState(0).randint(0, 256, (12, rows, columns), np.uint8)
    return torch.from_numpy((drawn.sum(0, dtype=np.float32) - 12 * 127.5) / 256)[None, None]


def _energy(band: Tensor) -> Tensor:
    return functional.avg_pool2d(band * band, _LIGHT_STEP)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of each picture of a batch under weights whose sum is one."""
    return (x * weight).sum((2, 3), keepdim=True)


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _sampled(picture: Tensor, where: Tensor) -> Tensor:
    return functional.grid_sample(picture, where, mode="bilinear", padding_mode="zeros", align_corners=False)


def _coloured_like(there: Tensor, weight: Tensor, tile: Tensor) -> Tensor:
    """Take the colour from a tile where the photo has none."""
    colour = (there.amax(1, keepdim=True) - there.amin(1, keepdim=True)) * weight
    share = (colour.sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True) / _GREY_LEVELS).clamp(max=1)
    grey = tile.mean(1, keepdim=True)
    return grey + (tile - grey) * share


def position_planes(size: int) -> Tensor:
    """Where each cell lies: (1, 2, size, size) float32, x and y in −1..1; instance norms would lose it otherwise."""
    return sampling_grid(size).permute(0, 3, 1, 2)


def _bands(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Split off the two finest bands of (N, 1, H, W): what 3×3 and 7×7 means lose."""
    fine = functional.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)
    coarse = functional.avg_pool2d(fine, 5, 1, 2, count_include_pad=False)
    return grey - fine, fine - coarse


def _blur_matrix(length: int) -> Tensor:
    """Gaussian blur along one axis as a matrix; beyond the edge there is nothing."""
    at = torch.arange(length, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / (_LIGHT_SIGMA / _LIGHT_STEP)) ** 2)
    return kernel / (_LIGHT_SIGMA / _LIGHT_STEP * math.sqrt(2 * math.pi))


def sampling_grid(size: int) -> Tensor:
    """Where sampling leaves a picture as it is.

    Returns:
        (1, size, size, 2) float32: x and y of every pixel's centre, the picture spanning −1..1.
    """
    centres = (torch.arange(size) + 0.5) * (2 / size) - 1
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)[None]
