"""The persona generator: one pix2pixHD trunk for both directions, a small network for traits, and an atlas of personas.

The trunk sees the face and says only where things go: displacement fields and masks. What is drawn comes from the
atlas, pictures of nobody. `visard_export.persona_graph` puts both together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from visard_export.networks.architectures import Pix2PixHDArchitecture
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator

Direction = Literal["to_male", "to_female"]
DIRECTIONS: tuple[Direction, Direction] = ("to_male", "to_female")

TONES, AGES, EXPRESSIONS = 3, 2, 2  # light to dark skin; young, old; closed, open mouth
ROWS = TONES * AGES * EXPRESSIONS
TILE_SHAPE = (320, 240)  # rows and columns in pixels of one persona
MAX_COUNT = 64  # personas in a group: a picture of 15,360 columns

SIZES = (64, 128, 256)  # at which a trunk may work
TRAITS_SIZE = 64  # side in pixels at which traits are read
TRAITS = TONES + 2  # logits of the tones, of old age, of an open mouth
_TRAITS_WIDTH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Atlas:
    """Personas of both genders, and where their tiles lie.

    Attributes:
        to_male: (3, 2, 2, count, 320, 240, 3) uint8 RGB: tone, age, mouth, persona.
        to_female: likewise.
        corner: centre of a tile's first pixel, in pixels of the aligned crop.
        scale: pixels of the crop in a pixel of a tile.
    """

    to_male: NDArray[np.uint8] = field(repr=False)
    to_female: NDArray[np.uint8] = field(repr=False)
    corner: tuple[float, float]
    scale: float

    def sheet(self, direction: Direction) -> NDArray[np.uint8]:
        """All personas of one direction in one picture: a row per tone, age and mouth, a column per persona."""
        tiles: NDArray[np.uint8] = getattr(self, direction)
        height, width = TILE_SHAPE
        rows = tiles.reshape(ROWS, -1, height, width, 3)
        return rows.transpose(0, 2, 1, 3, 4).reshape(ROWS * height, -1, 3)


def encode_sheet(sheet: NDArray[np.uint8], quality: int = 90) -> Tensor:
    """Write a sheet as the bytes of a WebP picture: (B,) uint8."""
    buffer = BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=quality, method=6)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def decode_sheet(data: Tensor) -> Tensor:
    """Read what `encode_sheet` wrote.

    Returns:
        (12 · count, 3, 320, 240) uint8 RGB, the persona varying fastest.

    Raises:
        ValueError: it is no WebP picture of such tiles.
    """
    height, width = TILE_SHAPE
    if data.dtype != torch.uint8:
        raise ValueError(f"its atlas is of {data.dtype}, not of bytes")
    try:
        with Image.open(BytesIO(data.numpy().tobytes()), formats=["WEBP"]) as picture:
            count, rest = divmod(picture.width, width)
            if rest or not 1 <= count <= MAX_COUNT or picture.height != ROWS * height:  # before anything is decoded
                raise ValueError(
                    f"its atlas has {picture.width}×{picture.height} pixels, not tiles of {width}×{height}"
                )
            sheet = np.array(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"its atlas is no WebP picture ({error})") from error
    tiles = sheet.reshape(ROWS, height, count, width, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(np.ascontiguousarray(tiles.reshape(-1, 3, height, width)))


@dataclass(frozen=True, kw_only=True)
class PersonaArchitecture:
    """What distinguishes one persona generator from another.

    Attributes:
        trunk: its sizes; its head is `persona`.
        atlas_bytes: lengths of the encoded atlases, to_male and to_female.
    """

    trunk: Pix2PixHDArchitecture
    atlas_bytes: tuple[int, int]

    def __post_init__(self) -> None:
        if self.trunk.head != "persona" or self.trunk.size not in SIZES:
            raise ValueError(f"the trunk must have the persona head and work at one of {SIZES}, not {self.trunk}")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, size: int) -> PersonaArchitecture:
        """Read the architecture off a state dict's shapes; what else they hold is not judged here.

        Raises:
            ValueError: the layers that tell it are missing, or a size is not one of ours.
        """
        trunk = {name.removeprefix("trunk."): shape for name, shape in shapes.items() if re.match(r"trunk\.", name)}
        lengths = [shapes.get(f"atlas_{direction}", ()) for direction in DIRECTIONS]
        if any(len(length) != 1 for length in lengths):
            raise ValueError(f"'atlas_to_male' and 'atlas_to_female' should be bytes, found shapes {lengths}")
        return cls(
            trunk=Pix2PixHDArchitecture.from_shapes(trunk, size=size), atlas_bytes=(lengths[0][0], lengths[1][0])
        )


class TraitsNetwork(nn.Module):
    """What of a face chooses among personas: tone, age, whether the mouth is open. No norms: light counts."""

    def __init__(self) -> None:
        super().__init__()
        width, layers = 3, []
        for wider in (_TRAITS_WIDTH, 2 * _TRAITS_WIDTH, 4 * _TRAITS_WIDTH, 4 * _TRAITS_WIDTH):
            layers += [nn.Conv2d(width, wider, 3, 2, 1), nn.ReLU()]
            width = wider
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(16 * width, TRAITS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 64, 64) RGB in −1..1 to (N, 5) logits."""
        y: Tensor = self.last(self.layers(x).flatten(1))
        return y


class PersonaGenerator(nn.Module):
    """Trunk, traits and atlas: everything of a persona generator that its checkpoint holds.

    Attributes:
        placement: (3,) float32: x and y of a tile's first pixel's centre in pixels of the aligned crop, and how many of
            those there are in a pixel of a tile.
        atlas_to_male: (B,) uint8, a WebP picture; see `decode_sheet`.
        atlas_to_female: likewise.
    """

    placement: Tensor
    atlas_to_male: Tensor
    atlas_to_female: Tensor

    def __init__(self, architecture: PersonaArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.trunk = Pix2PixHDGenerator(architecture.trunk)
        self.traits = TraitsNetwork()
        self.register_buffer("placement", torch.zeros(3))
        for direction, length in zip(DIRECTIONS, architecture.atlas_bytes, strict=True):
            self.register_buffer(f"atlas_{direction}", torch.zeros(length, dtype=torch.uint8))

    @classmethod
    def of(cls, trunk: Pix2PixHDGenerator, traits: TraitsNetwork, atlas: Atlas) -> PersonaGenerator:
        """Put trained parts together."""
        sheets = [encode_sheet(atlas.sheet(direction)) for direction in DIRECTIONS]
        network = cls(PersonaArchitecture(trunk=trunk.architecture, atlas_bytes=(len(sheets[0]), len(sheets[1]))))
        network.trunk, network.traits = trunk, traits
        network.placement = torch.tensor([*atlas.corner, atlas.scale])
        network.atlas_to_male, network.atlas_to_female = sheets
        return network
