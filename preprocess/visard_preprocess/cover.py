"""Covers heads so that nothing of a face remains: for faces that cannot be swapped.

There are three styles. `soft` is a soft cloud of the colours around: 16 coarse colours of the whole head, with noise,
and no edge of the photo in it. `mosaic` shows the same 16 colours as squares. `solid` is one grey, of which nothing of
the head can be told. They hide the face from people and from recognisers; that somebody is there stays visible. A blur
and a mosaic of more squares are not offered: benchmarks/results/covers.md says why, and what still shows.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from visard_preprocess import CoverStyle

_GREY = 112
_CELLS = 4  # per edge: a head of 4×4 colours has no eyes
_STEP = 16  # levels of 256 that one colour is rounded to: takes off the last of what the means could tell
_GRAIN = 3.0  # standard deviation of the grain, in levels: a cover without any looks cut out

# A head around a detector's box, which ends at the brows or the hairline above and at the chin below, in box edges:
# half the width, and how far crown and throat lie above and below the box. Measured generously: hair and ears too.
_HALF_WIDTH, _ABOVE, _BELOW = 0.95, 0.75, 0.35
_FEATHER = 0.15  # how far beyond the head the cover fades out, in its radii


def cover(
    photo: NDArray[np.uint8],
    boxes: Iterable[tuple[float, float, float, float]],
    style: CoverStyle = "soft",
    random: np.random.Generator | None = None,
) -> None:
    """Cover heads, in place.

    At most 48 numbers of 4 bits remain of a head, whatever its size: the means of 4×4 cells, rounded to steps of 16
    levels, and each cell moved by up to one step at random. Of a solid cover, none.

    Args:
        photo: (H, W, 3) uint8 RGB, writable.
        boxes: (left, top, right, bottom) of faces in photo pixels, as a detector gives them; they may leave the photo.
        style: how the cover looks.
        random: by which cells move; of a secret seed. The same one for every frame keeps a cover from flickering.
    """
    random = random or np.random.default_rng(secrets.randbits(128))
    height, width = photo.shape[:2]
    for left, top, right, bottom in boxes:
        radius_x = max(1.0, _HALF_WIDTH * (right - left))
        radius_y = max(1.0, (1 + _ABOVE + _BELOW) / 2 * (bottom - top))
        centre_x, centre_y = (left + right) / 2, (top + bottom + (_BELOW - _ABOVE) * (bottom - top)) / 2
        reach_x, reach_y = radius_x * (1 + _FEATHER), radius_y * (1 + _FEATHER)
        x0, x1 = max(0, int(centre_x - reach_x)), min(width, int(np.ceil(centre_x + reach_x)) + 1)
        y0, y1 = max(0, int(centre_y - reach_y)), min(height, int(np.ceil(centre_y + reach_y)) + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        region = photo[y0:y1, x0:x1]
        u = (np.arange(x0, x1, dtype=np.float32) - centre_x) / radius_x
        v = (np.arange(y0, y1, dtype=np.float32) - centre_y) / radius_y
        distance = np.hypot(u[None, :], v[:, None])  # 1 on the head's outline
        if style == "soft":
            opacity = np.clip((1 + _FEATHER - distance) / _FEATHER, 0, 1)[..., None]
            region[...] = np.rint(region + opacity * (_cloud(region, random) - region)).astype(np.uint8)
        else:
            head = distance <= 1 + _FEATHER
            region[head] = _GREY if style == "solid" else _squares(region, random)[head]


def _cloud(region: NDArray[np.uint8], random: np.random.Generator) -> NDArray[Any]:
    """(H, W, 3) float32, 0..255: the region's coarse colours, smoothly joined, with grain."""
    height, width = region.shape[:2]
    cloud = np.asarray(_coarse(region, random).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    cloud += random.normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
    return np.clip(cloud, 0, 255)


def _squares(region: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the region's coarse colours."""
    height, width = region.shape[:2]
    return np.asarray(_coarse(region, random).resize((width, height), Image.Resampling.NEAREST))


def _coarse(region: NDArray[np.uint8], random: np.random.Generator) -> Image.Image:
    """What remains of a region."""
    means = np.asarray(Image.fromarray(region).resize((_CELLS, _CELLS), Image.Resampling.BOX)).astype(np.float32)
    coarse = (np.floor(means / _STEP) + 0.5 + random.uniform(-1, 1, (_CELLS, _CELLS, 1))) * _STEP  # grey: no tints
    return Image.fromarray(np.clip(np.rint(coarse), 0, 255).astype(np.uint8))
