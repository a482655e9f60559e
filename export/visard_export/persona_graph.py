"""The served persona graph: a face and a number in, the same picture with a persona's face out.

    face ─► trunk ─► where the surroundings come from ─► moved face ──────────────────┐
      │         ├──► where each pixel lies in the personas' frame ─► persona ─► lit ─┐ │
      │         └──► masks: face, bare skin                                          ▼ ▼
      └───► traits ─► group of personas ─► with the number: which one             blended ─► result

Of the face itself only this reaches the picture inside the mask: where things lie (smooth fields at a quarter of the
size), the low frequencies of light and skin colour, how sharp, noisy and colourful the photo is, and a choice of one
of twelve groups. This module knows nothing about files or ONNX.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from visard_export.networks.persona import (
    AGES,
    DIRECTIONS,
    EXPRESSIONS,
    ROWS,
    TILE_SHAPE,
    TONES,
    TRAITS_SIZE,
    Direction,
    PersonaGenerator,
    decode_sheet,
)
from visard_export.networks.pix2pixhd import IMAGE_SIZE
from visard_export.precision import Precision, dtype_of, in_precision

# The part of the crop in which a face can lie: left, top, right, bottom; multiples of 8. Outside it nothing changes.
WINDOW = (48, 64, 464, 504)
_RAMP = 24  # pixels over which the changes fade towards the window's edge
SURROUNDINGS_SCALE, PERSONA_SCALE = 0.1, 0.3  # of the crop's side: what an output of one means

_LIGHT_STEP = 8  # light is computed on a picture reduced so many times
_LIGHT_SIGMA = 34.0  # pixels of the crop
_LIGHT_OFFSET = 2.0  # grey levels: keeps ratios of dark tones calm
_LIGHT_RANGE = (0.02, 3.0)
_SHARPEST = 1.25  # how many times its own detail a persona may be given
_GREY_LEVELS = 5.0  # mean difference between the channels of skin below which a photo loses its colour
_EPSILON = 1e-3


class PersonaGraph(nn.Module):
    """`generator_to_*`: (N, 512, 512, 3) uint8 RGB and (N, 1) int32 → (N, 512, 512, 3) uint8 RGB.

    The number chooses the persona of the face's group, modulo how many there are; below zero the graph draws one.
    In `fp16` the trunk's and the traits' layers run in half, everything else in float32.
    """

    tiles: Tensor
    position: Tensor
    ramp: Tensor
    small_ramp: Tensor
    photo_grid: Tensor
    crop_to_tile: Tensor
    crop_offset: Tensor
    blur_rows: Tensor
    blur_columns: Tensor
    noise: Tensor

    def __init__(self, network: PersonaGenerator, direction: Direction, precision: Precision = "fp32") -> None:
        super().__init__()
        self.architecture = network.architecture
        self.direction = direction
        self.network = in_precision(network.trunk, precision)
        self.traits = in_precision(network.traits, precision)
        # Half holds the levels 0..255 exactly, and TensorRT has bytes at a network's borders alone.
        self.register_buffer("tiles", decode_sheet(getattr(network, f"atlas_{direction}")).half())
        self.count = len(self.tiles) // ROWS
        size = network.architecture.trunk.size
        position = position_planes(size)
        sign = 1.0 if direction == DIRECTIONS[0] else -1.0
        self.register_buffer("position", torch.cat([position, sign * position[:, 1:]], 1))
        left, top, right, bottom = WINDOW
        rows, columns = bottom - top, right - left
        x, y = torch.arange(columns) + 0.5, torch.arange(rows) + 0.5
        near = torch.minimum(torch.minimum(x, columns - x)[None], torch.minimum(y, rows - y)[:, None])
        ramp = (near / _RAMP).clamp(0, 1)[None, None]
        self.register_buffer("ramp", ramp)
        self.register_buffer("small_ramp", functional.avg_pool2d(ramp, IMAGE_SIZE // size))
        # What is sampled, in units where a picture spans −1..1: the crop for the surroundings, a tile for the persona.
        identity = sampling_grid(IMAGE_SIZE)[:, top:bottom, left:right]
        self.register_buffer("photo_grid", identity)
        corner, scale = network.placement[:2].float(), float(network.placement[2])
        tile = torch.tensor([TILE_SHAPE[1], TILE_SHAPE[0]])
        per_unit = IMAGE_SIZE / 2 / scale * 2 / tile  # of a tile's −1..1, in the crop's −1..1
        centre = (IMAGE_SIZE - 1) / 2
        offset = ((centre - corner) / scale + 0.5) * 2 / tile - 1
        self.register_buffer("crop_to_tile", per_unit.view(1, 1, 1, 2))
        self.register_buffer("crop_offset", offset.view(1, 1, 1, 2))
        self.register_buffer("blur_rows", _blur_matrix(rows // _LIGHT_STEP))
        self.register_buffer("blur_columns", _blur_matrix(columns // _LIGHT_STEP).T)
        noise = torch.randn(1, 1, rows, columns, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise)

    def forward(self, image: Tensor, persona: Tensor) -> Tensor:
        """Draw the persona into the picture."""
        photo = image.permute(0, 3, 1, 2).float()
        size = self.architecture.trunk.size
        small = functional.avg_pool2d(photo, IMAGE_SIZE // size) / 127.5 - 1
        position = self.position.expand(small.shape[0], -1, -1, -1)
        dtype = dtype_of(self.network)
        output = self.network(torch.cat([small, position], 1).to(dtype)).float()
        tile = self._tile(small.to(dtype), persona)

        left, top, right, bottom = WINDOW
        step = IMAGE_SIZE // size
        fields = output[:, :, top // step : bottom // step, left // step : right // step]
        mask = torch.sigmoid(fields[:, 4:5]) * self.small_ramp
        skin = torch.sigmoid(fields[:, 5:6]) * self.small_ramp
        scale = fields.new_tensor([SURROUNDINGS_SCALE * 2] * 2 + [PERSONA_SCALE * 2] * 2).view(1, 4, 1, 1)
        moves = functional.interpolate(fields[:, :4] * scale, scale_factor=step, mode="bilinear", align_corners=False)
        moves = moves.permute(0, 2, 3, 1)
        edge = 1 - 1 / IMAGE_SIZE
        there = (self.photo_grid + moves[..., :2] * self.ramp.permute(0, 2, 3, 1)).clamp(-edge, edge)
        around = functional.grid_sample(photo, there, mode="bilinear", padding_mode="zeros", align_corners=False)
        where = (self.photo_grid + moves[..., 2:]) * self.crop_to_tile + self.crop_offset
        face = functional.grid_sample(tile, where.clamp(-0.995, 0.995), mode="bilinear", align_corners=False)
        face = self._lit(face, around, mask, skin)
        alpha = functional.interpolate(mask, scale_factor=step, mode="bilinear", align_corners=False)
        window = around + (face - around) * alpha
        middle = torch.cat([photo[:, :, top:bottom, :left], window, photo[:, :, top:bottom, right:]], 3)
        swapped = torch.cat([photo[:, :, :top], middle, photo[:, :, bottom:]], 2)
        # Rounded: most of the result is a photo sampled between its pixels, which truncation would darken.
        return (swapped + 0.5).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)

    def _tile(self, small: Tensor, persona: Tensor) -> Tensor:
        """Choose a tile for each face: (N, 3, 320, 240) float32."""
        traits = self.traits(functional.avg_pool2d(small, small.shape[-1] // TRAITS_SIZE)).float()
        tone = traits[:, :TONES].argmax(1)
        old, opened = ((traits[:, TONES + i] > 0).long() for i in range(2))
        drawn = (torch.rand_like(traits[:, 0]) * self.count).long().clamp(max=self.count - 1)
        number = persona[:, 0].long()
        number = torch.where(number < 0, drawn, number.clamp(min=0) % self.count)
        index = ((tone * AGES + old) * EXPRESSIONS + opened) * self.count + number
        return torch.index_select(self.tiles, 0, index).float()

    def _lit(self, face: Tensor, around: Tensor, mask: Tensor, skin: Tensor) -> Tensor:
        """Give a persona the photo's light, colourfulness, sharpness and noise."""
        pool = _LIGHT_STEP * mask.shape[-1] // face.shape[-1]
        face_weight = functional.avg_pool2d(mask, pool) + _EPSILON
        skin_weight = functional.avg_pool2d(mask * skin, pool) + _EPSILON * face_weight
        there, here = functional.avg_pool2d(around, _LIGHT_STEP), functional.avg_pool2d(face, _LIGHT_STEP)
        wanted, own = self._low(there, skin_weight), self._low(here, face_weight)
        light = ((wanted + _LIGHT_OFFSET) / (own + _LIGHT_OFFSET)).clamp(*_LIGHT_RANGE)
        light = functional.interpolate(light, scale_factor=_LIGHT_STEP, mode="bilinear", align_corners=False)
        face = face * light

        colour = (there.amax(1, keepdim=True) - there.amin(1, keepdim=True)) * skin_weight
        colourful = (colour.sum((2, 3), keepdim=True) / skin_weight.sum((2, 3), keepdim=True) / _GREY_LEVELS).clamp(max=1)
        grey = face.mean(1, keepdim=True)
        face = grey + (face - grey) * colourful

        # Two bands of detail, each brought to the strength that it has in the photo's skin.
        photo_grey, face_grey = around.mean(1, keepdim=True), face.mean(1, keepdim=True)
        photo_bands, face_bands = _bands(photo_grey), _bands(face_grey)
        weight = skin_weight / skin_weight.sum((2, 3), keepdim=True)
        for i, (theirs, ours) in enumerate(zip(photo_bands, face_bands, strict=True)):
            their_energy = functional.avg_pool2d(theirs * theirs, _LIGHT_STEP)
            our_energy = functional.avg_pool2d(ours * ours, _LIGHT_STEP)
            their_mean = (their_energy * weight).sum((2, 3), keepdim=True)
            our_mean = (our_energy * weight).sum((2, 3), keepdim=True)
            gain = ((their_mean + _EPSILON) / (our_mean + _EPSILON)).sqrt().clamp(max=_SHARPEST)
            face = face + ours * (gain - 1)
            if i == 0:
                # What even the calmest places of the photo have more of is noise.
                floor = 1 / (weight / (their_energy + 0.05)).sum((2, 3), keepdim=True)
                own_floor = gain * gain / (weight / (our_energy + 0.05)).sum((2, 3), keepdim=True)
                strength = (floor - own_floor).clamp(0, 400).sqrt()
                face = face + self.noise * strength
        return face

    def _low(self, picture: Tensor, weight: Tensor) -> Tensor:
        """Low frequencies of a reduced picture where the weight is; towards its weighted mean elsewhere."""
        mean = (picture * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True)
        both = self.blur_rows @ torch.cat([picture * weight, weight], 1) @ self.blur_columns
        return (both[:, :3] + _EPSILON * mean) / (both[:, 3:] + _EPSILON)


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
