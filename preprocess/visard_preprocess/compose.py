"""Blends swapped faces back into the photo they came from.

The exact inverse of `geometry.crop`. Each pixel of a face's core comes from that face's own swap and from nothing
else; towards its edge a swap fades into the photo. Pixels outside every crop stay bit-identical.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_preprocess.geometry import CROP_SIZE, Quad
from visard_preprocess.pixels import pixels_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_Box = tuple[int, int, int, int]  # left, top, right, bottom in photo pixels

# In unit coordinates, −1..1 across a crop.
_ROUNDING = 1e-3
_FEATHER = 0.1  # chins reach 0.87 in the median: a wider feather would let the original show through
_FACE_CENTRE_V = 0.15  # hairline to chin, over the landmarks of real faces
_FACE_RADII = (0.6, 0.75)

_BLOCK = 128  # pixels of the photo that are blended at once: what is computed of them stays in the processor's caches

_CELLS = 16  # colour is matched on 16×16 cells of 32 pixels: too few to hold a face
_FADE_FROM, _FADE_TO = 0.45, 1 - 1 / _CELLS  # no correction inside, full correction in the outermost cells


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceSwap:
    """One face to blend in.

    Attributes:
        quad: where the crop lies in the photo.
        aligned: (512, 512, 3) uint8 RGB, the crop as it was cut out.
        swapped: (512, 512, 3) uint8 RGB, what replaces it.
    """

    quad: Quad
    aligned: NDArray[np.uint8] = field(repr=False)
    swapped: NDArray[np.uint8] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse other shapes and types."""
        for image in (self.aligned, self.swapped):
            if image.shape != (CROP_SIZE, CROP_SIZE, 3) or image.dtype != np.uint8:
                raise ValueError(f"crops are ({CROP_SIZE}, {CROP_SIZE}, 3) uint8, not {image.shape} {image.dtype}")


def compose(photo: NDArray[np.uint8], swaps: Sequence[FaceSwap]) -> NDArray[np.uint8]:
    """Replace faces in a photo.

    Where crops overlap, each pixel goes to the face whose centre is nearest in units of that face's size: a crop also
    holds its neighbour's original face, and pasting it must not bring that face back.

    Args:
        photo: (H, W, 3) uint8 RGB; stays as it is.
        swaps: the faces, in any order.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    result = photo.copy()
    quads = [swap.quad for swap in swaps]
    boxes = [_bounding_box(quad, photo.shape[1], photo.shape[0]) for quad in quads]
    for index, (swap, box) in enumerate(zip(swaps, boxes, strict=True)):
        left, top, right, bottom = box
        if left >= right or top >= bottom:
            continue
        overlapping = [other for other in range(len(quads)) if _overlap(boxes[other], box)]
        rivals, place = [quads[other] for other in overlapping], overlapping.index(index)
        warped = _warp(_match_colours(swap), swap.quad, box)
        for part in _blocks(box):
            x0, y0, x1, y1 = part
            _blend(
                result[y0:y1, x0:x1], warped[y0 - top : y1 - top, x0 - left : x1 - left], _opacity(rivals, place, part)
            )
    return result


def _blend(region: NDArray[np.uint8], swapped: NDArray[np.uint8], opacity: NDArray[np.float32] | float) -> None:
    """Lay a swap over a part of the photo, in place."""
    if isinstance(opacity, float):
        if opacity:
            region[...] = swapped
        return
    change = swapped.astype(np.float32)
    change -= region
    change *= opacity[..., None]
    change += region
    np.rint(change, out=change)
    region[...] = change


def _blocks(box: _Box) -> Iterator[_Box]:
    """Cut a box into blocks, the last ones smaller."""
    left, top, right, bottom = box
    for y in range(top, bottom, _BLOCK):
        for x in range(left, right, _BLOCK):
            yield x, y, min(x + _BLOCK, right), min(y + _BLOCK, bottom)


def _bounding_box(quad: Quad, width: int, height: int) -> _Box:
    low, high = np.floor(quad.corners.min(axis=0)), np.ceil(quad.corners.max(axis=0)) + 1
    return (
        max(0, int(low[0])),
        max(0, int(low[1])),
        min(width, int(high[0])),
        min(height, int(high[1])),
    )


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _opacity(quads: Sequence[Quad], index: int, box: _Box) -> NDArray[np.float32] | float:
    """How strongly swap `index` covers what is there when it is pasted, after those before it and before those after.

    Let c be the largest of the swaps' masks at a pixel and s_k the share of swap k in it (the shares sum to 1). The
    picture is to be (1 − c)·photo + c·Σ s_k·swap_k. Pasting one after the other gives that where swap k is pasted with
    c·s_k / (1 − c + c·(s_1 + … + s_k)).

    Args:
        quads: every face that may cover a part of `box`, in the order of pasting.
        index: the face to paste.
        box: a part of the photo, (left, top, right, bottom).

    Returns:
        (bottom − top, right − left) float32, 0..1; or 0.0 or 1.0 for all of it.
    """
    left, top, right, bottom = box
    x, y = np.arange(left, right, dtype=np.float32)[None, :], np.arange(top, bottom, dtype=np.float32)[:, None]
    u, v = quads[index].to_unit(x[:, [0, -1]], y[[0, -1]])  # the corners: a square has all of a box that has these
    if min(u.max(), -u.min(), v.max(), -v.min()) < -1:
        return 0.0
    if len(quads) == 1:
        if max(np.abs(u).max(), np.abs(v).max()) < 1 - _FEATHER - _ROUNDING:
            return 1.0
        return _mask(*quads[index].to_unit(x, y))
    masks, claims = zip(*(_mask_and_claim(quad, x, y) for quad in quads), strict=True)
    coverage: NDArray[np.float32] = np.maximum.reduce(masks)
    before = np.add.reduce(claims[: index + 1])
    total = np.add.reduce(claims)
    opacity = np.zeros_like(coverage)
    np.divide(
        coverage * claims[index], total * (1 - coverage) + coverage * before, out=opacity, where=claims[index] > 0
    )
    return opacity


def _mask(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of a pixel a crop may cover, 0..1."""
    mask: NDArray[np.float32] = _smoothstep((1 - np.maximum(np.abs(u), np.abs(v))) / _FEATHER)
    return mask


def _mask_and_claim(
    quad: Quad, x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`_mask`, and how strongly a crop's face claims the pixel against other faces."""
    u, v = quad.to_unit(x, y)
    mask = _mask(u, v)
    distance2 = (u / _FACE_RADII[0]) ** 2 + ((v - _FACE_CENTRE_V) / _FACE_RADII[1]) ** 2  # 1 at the face's outline
    return mask, mask / (distance2 + 1e-3) ** 4


def _smoothstep(x: NDArray[Any]) -> Any:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _warp(crop: NDArray[np.uint8], quad: Quad, box: _Box) -> NDArray[np.uint8]:
    """Bring a crop into the box of the photo; black outside the quad.

    A face that is smaller in the photo than in the crop is reduced with a filter first, so that nothing aliases.
    """
    left, top, right, bottom = box
    size = min(CROP_SIZE, max(1, math.ceil(quad.side)))
    image = Image.fromarray(crop)
    if size < CROP_SIZE:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    # Pillow counts from a pixel's corner; the first pixel of the box has its corner half a pixel before its index.
    x0, y0 = quad.to_crop(np.array([left - 0.5, top - 0.5]), size) + 0.5
    per_pixel = size / quad.side**2 * 2
    a, b = quad.x_axis[0] * per_pixel, quad.x_axis[1] * per_pixel
    return pixels_of(
        image.transform(
            (right - left, bottom - top),
            Image.Transform.AFFINE,
            (a, b, x0, -b, a, y0),
            Image.Resampling.BICUBIC,
        )
    )


def _match_colours(swap: FaceSwap) -> NDArray[np.uint8]:
    """Shift a swap's colours so that they meet the photo's at the crop's edge.

    The difference between the crop before and after, measured along the edge alone and in coarse cells, is continued
    smoothly inwards and fades out before the middle of the face: nothing of the original face is in it.
    """
    block = CROP_SIZE // _CELLS
    before, after = (
        np.asarray(Image.fromarray(image).reduce(block)).astype(np.float32) for image in (swap.aligned, swap.swapped)
    )
    ring, continuation = _continuation()
    offsets = (continuation @ (before - after).reshape(-1, 3)[ring]).T.reshape(3, _CELLS, _CELLS)
    size = (CROP_SIZE, CROP_SIZE)
    shifted = swap.swapped.astype(np.float32)
    for channel, offset in enumerate(offsets):
        shifted[..., channel] += np.asarray(Image.fromarray(offset).resize(size, Image.Resampling.BICUBIC))
    np.rint(shifted, out=shifted)
    np.clip(shifted, 0, 255, out=shifted)
    return shifted.astype(np.uint8)


@cache
def _continuation() -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which cells lie on the edge, (256,) bool, and what each cell takes from them, (256, 60) float32."""
    v, u = np.mgrid[:_CELLS, :_CELLS].reshape(2, -1) * (2 / _CELLS) + (1 / _CELLS - 1)
    from_centre = np.maximum(np.abs(u), np.abs(v))
    ring = from_centre > 1 - 1.5 / _CELLS
    distance2 = (u[:, None] - u[ring]) ** 2 + (v[:, None] - v[ring]) ** 2
    weights = 1 / (distance2 + 1e-6) ** 1.5
    weights /= weights.sum(axis=1, keepdims=True)
    fade = _smoothstep((from_centre - _FADE_FROM) / (_FADE_TO - _FADE_FROM))
    return ring, (weights * fade[:, None]).astype(np.float32)
