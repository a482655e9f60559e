"""Where faces are in a photo: boxes and scores by YuNet, at any angle, in any light; it knows no landmarks.

Wu, Peng and Yu: YuNet, Machine Intelligence Research 20 (2023); the file of OpenCV Zoo, March 2023 (MIT), in which the
size of the input was set free. The network sees squares of 640 pixels or less. So a photo is looked at in tiles, at
full size and at one half of it after the other: a face from 15 pixels up is whole in at least one tile, and most are
seen at several sizes, of which one is the easiest.
Sunglasses with a mask are found by the smaller copies alone. Dark tiles are looked at a second time, brightened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_preprocess.geometry import Box
from visard_preprocess.networks import network
from visard_preprocess.pixels import pixels_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODEL = Path(__file__).parent / "data" / "face_detection_yunet_2023mar.onnx"

TILE = 640  # edge of the pictures that the network was made for
_STEP = 32  # edge of its coarsest cells
_BLACK = 128  # pixels beyond a smaller picture's right and bottom edge: more change no face's score
_OVERLAP = 64  # of neighbouring tiles: a larger face that both cut is whole in a smaller copy of the photo
_SMALLEST_COPY = 320  # longer edge: sunglasses with a mask score 0.1 to 0.7 at 640 pixels, and 0.75 to 0.9 here
_MAX_SCALE = 2.0
_PIXELS, _MIN_SCALE = 7e6, 0.6  # a larger photo is reduced to so many pixels, and never further than to this scale
_STRIDES = (8, 16, 32)
_EDGE = 16  # pixels: what is cut is seen as a narrower face that ends a little before the edge
_SAME_FACE_IOU = 0.25
# Of two boxes of which one lies in the other by this share, one is a part of a face, or more than one, where its score
# is lower by this much: somebody whose face is seen in front of another's scores as high as that.
_PART_SHARE, _PART_SCORE, _PART_SIZE = 0.7, 0.1, 9

# A tile is dark where this share of its pixels lies below this level: half a photo that lies in the dark is enough.
_DARK_LEVEL, _DARK_SHARE = 60, 0.3
_BRIGHT_LEVEL, _MAX_GAIN, _GAMMA = 200, 16.0, 0.7


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """One face that YuNet sees.

    Attributes:
        box: (left, top, right, bottom) in photo pixels, from the forehead to the chin; may leave the photo.
        score: 0..1.
        points: (5, 2) float64 in pixel-index coordinates of the photo: the eyes, the tip of the nose, the corners of
            the mouth, each pair beginning with the one that lies left in an upright face. Guessed where they are
            hidden.
    """

    box: Box
    score: float
    points: NDArray[np.float64] = field(repr=False)


def detect(photo: NDArray[np.uint8], threshold: float) -> list[Detection]:
    """Find faces, the best first; of those that overlap, the best.

    Args:
        photo: (H, W, 3) uint8 RGB.
        threshold: least score, 0..1.
    """
    found: list[Detection] = []
    for look, corner, per_pixel, inner in looks_at(photo):
        scores, boxes, points = look_at(look, threshold)
        # What crosses an edge between tiles is whole in the neighbour or in a smaller copy.
        cut = (np.column_stack([boxes[:, :2] < _EDGE, boxes[:, 2:] > TILE - _EDGE]) & inner).any(axis=1)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres >= 0) & (centres < look.shape[1::-1])).all(axis=1)
        for index in np.flatnonzero(inside & ~cut):
            corners = (boxes[index].reshape(2, 2) + corner) * per_pixel
            box: Box = tuple(map(float, corners.ravel()))  # type: ignore[assignment]
            places = (points[index] + corner) * per_pixel - 0.5
            found.append(Detection(box=box, score=float(scores[index]), points=places))
    return _best(found)


def looks_at(
    photo: NDArray[np.uint8],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int_], NDArray[np.float64], NDArray[np.bool_]]]:
    """What the network gets to see of a photo.

    Args:
        photo: (H, W, 3) uint8 RGB.

    Yields:
        A tile of a copy of it, (h, w, 3) uint8 RGB of at most 640×640 pixels; its left top corner in the copy; photo
        pixels for one of the copy, in both directions; and whether the copy goes on beyond its left, top, right and
        bottom edge.
    """
    for copy in _copies(photo):
        height, width = copy.shape[:2]
        per_pixel = np.array([photo.shape[1] / width, photo.shape[0] / height])
        for left, top in _tiles(width, height):
            inner = np.array([left > 0, top > 0, left + TILE < width, top + TILE < height])
            for look in looks(copy[top : top + TILE, left : left + TILE]):
                yield look, np.array([left, top]), per_pixel, inner


def look_at(
    tile: NDArray[np.uint8], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Run the network once; boxes of one face overlap.

    Args:
        tile: (H, W, 3) uint8 RGB of at most 640×640 pixels.
        threshold: least score, 0..1.

    Returns:
        (N,) scores, (N, 4) boxes (left, top, right, bottom) and (N, 5, 2) points, all float64 in pixels of the tile.

    Raises:
        CheckpointError: the model cannot be run.
    """
    height, width = tile.shape[:2]
    rows, columns = (min(TILE, math.ceil((edge + _BLACK) / _STEP) * _STEP) for edge in (height, width))
    tensor = np.zeros((1, 3, rows, columns), np.float32)  # BGR, 0..255
    tensor[0, :, :height, :width] = tile[..., ::-1].transpose(2, 0, 1)
    session = network(MODEL)
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(names, {"input": tensor}), strict=True))
    parts = []
    for stride in _STRIDES:
        scores = np.sqrt(answers[f"cls_{stride}"][0, :, 0] * answers[f"obj_{stride}"][0, :, 0])
        (chosen,) = np.nonzero(scores >= threshold)
        cells = np.column_stack(np.divmod(chosen, columns // stride)[::-1]).astype(np.float64)
        offsets = answers[f"bbox_{stride}"][0, chosen].astype(np.float64)
        centres, halves = (cells + offsets[:, :2]) * stride, np.exp(offsets[:, 2:]) * stride / 2
        points = (cells[:, None] + answers[f"kps_{stride}"][0, chosen].reshape(-1, 5, 2)) * stride
        parts.append((scores[chosen].astype(np.float64), np.hstack([centres - halves, centres + halves]), points))
    scores, boxes, points = (np.concatenate(each) for each in zip(*parts, strict=True))
    return scores, boxes, points


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two (left, top, right, bottom) boxes."""
    shared = _shared(a, b)
    return shared / (_area(a) + _area(b) - shared) if shared else 0.0


def _copies(photo: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The photo and one half of it after the other; one of less than a tile fills it first, a huge one is reduced."""
    copy = Image.fromarray(photo)
    scale = max(1.0, min(_MAX_SCALE, TILE / max(copy.size)))
    if copy.width * copy.height > _PIXELS:
        scale = max(_MIN_SCALE, math.sqrt(_PIXELS / (copy.width * copy.height)))
    if scale != 1:
        copy = _resized(copy, scale)
    yield photo if scale == 1 else pixels_of(copy)
    while max(copy.size) > 2 * TILE:
        copy = copy.reduce(2)
        yield pixels_of(copy)
    if max(copy.size) > TILE:
        copy = _resized(copy, TILE / max(copy.size))
        yield pixels_of(copy)
    yield pixels_of(_resized(copy, _SMALLEST_COPY / max(copy.size)))


def _resized(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR)


def _tiles(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Left and top edges of tiles that cover a picture."""
    for top in _starts(height):
        for left in _starts(width):
            yield left, top


def _starts(length: int) -> list[int]:
    if length <= TILE:
        return [0]
    count = math.ceil((length - _OVERLAP) / (TILE - _OVERLAP))
    return [round(index * (length - TILE) / (count - 1)) for index in range(count)]


def looks(tile: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield a tile, (H, W, 3) uint8 RGB, as it is; then once more, brightened, where much of it is dark."""
    yield tile
    red, green, blue = np.moveaxis(tile[::4, ::4], 2, 0)
    levels = np.maximum(np.maximum(red, green), blue)  # numpy's `max` over three values takes ten times as long
    dark = levels[levels < _DARK_LEVEL]
    if dark.size >= _DARK_SHARE * levels.size:
        gain = min(_MAX_GAIN, _BRIGHT_LEVEL / max(1.0, float(np.percentile(dark, 99))))
        curve = 255 * np.clip(np.arange(256) * gain / 255, 0, 1) ** _GAMMA
        yield np.rint(curve).astype(np.uint8)[tile]


def _best(found: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for each in sorted(found, key=lambda each: each.score, reverse=True):
        if not any(_same(other, each) for other in kept):
            kept.append(each)
    return kept


def _same(better: Detection, other: Detection) -> bool:
    """Whether two boxes are of one face."""
    if iou(better.box, other.box) >= _SAME_FACE_IOU:
        return True
    smaller, larger = sorted((_area(better.box), _area(other.box)))
    part = _shared(better.box, other.box) >= _PART_SHARE * smaller and larger <= _PART_SIZE * smaller
    return part and better.score - other.score >= _PART_SCORE


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
