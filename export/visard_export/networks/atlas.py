"""Personas of both genders, and the pictures in which a checkpoint keeps them. Reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Direction = Literal["to_male", "to_female"]
DIRECTIONS: tuple[Direction, Direction] = ("to_male", "to_female")

TONES, AGES, EXPRESSIONS = 3, 2, 2  # light to dark skin; young, old; closed, open mouth
ROWS = TONES * AGES * EXPRESSIONS
TILE_SHAPE = (320, 240)  # rows and columns in pixels of one persona
MAX_COUNT = 64  # personas in a group: a picture of 15,360 columns


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


def encode_sheet(sheet: NDArray[np.uint8], quality: int = 90) -> NDArray[np.uint8]:
    """Write a sheet as the bytes of a WebP picture: (B,) uint8."""
    buffer = BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=quality, method=6)
    return np.frombuffer(bytearray(buffer.getvalue()), np.uint8)


def decode_sheet(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Read what `encode_sheet` wrote.

    Returns:
        (12 · count, 3, 320, 240) uint8 RGB, the persona varying fastest.

    Raises:
        ValueError: it is no WebP picture of such tiles.
    """
    height, width = TILE_SHAPE
    if data.dtype != np.uint8:
        raise ValueError(f"its atlas is of {data.dtype}, not of bytes")
    try:
        with Image.open(BytesIO(data.tobytes()), formats=["WEBP"]) as picture:
            count, rest = divmod(picture.width, width)
            if rest or not 1 <= count <= MAX_COUNT or picture.height != ROWS * height:  # before anything is decoded
                raise ValueError(
                    f"its atlas has {picture.width}×{picture.height} pixels, not tiles of {width}×{height}"
                )
            sheet = np.array(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"its atlas is no WebP picture ({error})") from error
    tiles = sheet.reshape(ROWS, height, count, width, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(-1, 3, height, width))
