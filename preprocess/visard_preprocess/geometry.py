"""Where an aligned face lies in a photo: the FFHQ square, the way there and back, and the crop itself.

A quad is a square, so that crop and photo are related by a similarity transform whose inverse is exact. Points are
(x, y) in pixel-index coordinates: the centre of the first pixel is (0, 0). Landmarks come from `align`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from visard_preprocess.pixels import pixels_of

Box = tuple[float, float, float, float]  # left, top, right, bottom

CROP_SIZE = 512

# The textbook procedure samples an 8-fold grid whatever the face's size. Here a photo that is finer than a 2-fold grid
# is reduced to it with a filter, and then sampled on it. What is coarser needs no more than 1.5 samples for each pixel
# of the photo or the crop, whichever is larger: the final Lanczos filter sees no aliasing.
_OVERSAMPLING, _OF_COARSE = 2, 1.5

# FFHQ's constants, in units of the quad's side.
_BORDER = 0.1
_MIN_PAD = 0.3
_BLUR_SIGMA = 0.02
_BLUR_AT = 4.0  # a wider blur than of so many pixels is made on a reduced copy
_PADDING_MARGIN_PX = 4  # a quad that comes this close to the photo's edge is padded too


@dataclass(frozen=True, kw_only=True)
class Quad:
    """A square in a photo, at any angle.

    Attributes:
        centre: (x, y) in pixel-index coordinates of the photo.
        x_axis: from the centre to the middle of the right edge; the y axis is the same, turned clockwise as seen on
            the screen.
    """

    centre: tuple[float, float]
    x_axis: tuple[float, float]

    @property
    def side(self) -> float:
        """Length of an edge in photo pixels."""
        return 2 * math.hypot(*self.x_axis)

    @property
    def angle(self) -> float:
        """By how much it is turned clockwise as seen on the screen, in radians, −π..π."""
        return math.atan2(self.x_axis[1], self.x_axis[0])

    @property
    def corners(self) -> NDArray[np.float64]:
        """(4, 2) top left, bottom left, bottom right, top right: the order of Pillow's QUAD transform."""
        x = np.array(self.x_axis)
        y = np.array([-x[1], x[0]])
        corners: NDArray[np.float64] = self.centre + np.array([-x - y, -x + y, x + y, x - y])
        return corners

    def to_photo(self, points: NDArray[Any], size: int = CROP_SIZE) -> NDArray[np.float64]:
        """Map points of the crop into the photo.

        Args:
            points: (..., 2), x before y, in pixel-index coordinates of the crop.
            size: edge of the crop in pixels.

        Returns:
            (..., 2) float64 in pixel-index coordinates of the photo.
        """
        u, v = np.moveaxis(2 * (np.asarray(points, np.float64) + 0.5) / size - 1, -1, 0)
        x, y = self.x_axis
        return np.stack([self.centre[0] + u * x - v * y, self.centre[1] + u * y + v * x], axis=-1)

    def to_crop(self, points: NDArray[Any], size: int = CROP_SIZE) -> NDArray[np.float64]:
        """Map points of the photo into the crop: the inverse of `to_photo`."""
        x, y = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        unit: NDArray[np.float64] = np.stack(self.to_unit(x, y), axis=-1)
        return (unit + 1) * size / 2 - 0.5

    def to_unit(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Map photo coordinates that broadcast against each other to −1..1 across the square, in their own dtype."""
        scale = 1 / (self.x_axis[0] ** 2 + self.x_axis[1] ** 2)
        a, b = self.x_axis[0] * scale, self.x_axis[1] * scale
        dx, dy = x - self.centre[0], y - self.centre[1]
        return a * dx + b * dy, a * dy - b * dx


def ffhq_quad(landmarks: NDArray[Any]) -> Quad:
    """Place the square of the FFHQ data set around a face.

    Closed form of the alignment in NVIDIA's ffhq-dataset `download_ffhq.py` (Karras et al., 2019).

    Args:
        landmarks: (68, 2) points in the order of dlib's predictor, in pixel-index coordinates.

    Raises:
        ValueError: the landmarks coincide, so that they have no direction.
    """
    points = np.asarray(landmarks, np.float64)
    return _ffhq_quad(points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[48], points[54])


def five_point_quad(points: NDArray[Any]) -> Quad:
    """Place the same square by fewer points.

    Args:
        points: (5, 2) eyes, tip of the nose and corners of the mouth, in pixel-index coordinates.

    Raises:
        ValueError: the points coincide, so that they have no direction.
    """
    return _ffhq_quad(*np.asarray(points, np.float64)[[0, 1, 3, 4]])


def _ffhq_quad(
    eye_left: NDArray[np.float64],
    eye_right: NDArray[np.float64],
    mouth_left: NDArray[np.float64],
    mouth_right: NDArray[np.float64],
) -> Quad:
    eyes = (eye_left + eye_right) / 2
    eye_to_eye = eye_right - eye_left
    eye_to_mouth = (mouth_left + mouth_right) / 2 - eyes
    direction = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    length = math.hypot(*direction)
    if not length > 0:
        raise ValueError("the landmarks coincide: they do not describe a face")
    half = max(2.0 * math.hypot(*eye_to_eye), 1.8 * math.hypot(*eye_to_mouth))
    centre, x_axis = eyes + 0.1 * eye_to_mouth, direction * (half / length)
    return Quad(centre=(float(centre[0]), float(centre[1])), x_axis=(float(x_axis[0]), float(x_axis[1])))


def crop(photo: NDArray[np.uint8], quad: Quad, size: int = CROP_SIZE) -> NDArray[np.uint8]:
    """Cut a quad out of a photo.

    Within one grey level on average of the FFHQ procedure (a 4096² bilinear transform, then Lanczos), without its
    cost: only the quad's surroundings are touched, and they are reduced with a filter before they are turned.

    Args:
        photo: (H, W, 3) uint8 RGB.
        quad: the square; where it leaves the photo, the crop continues as a blurred reflection.
        size: edge of the crop in pixels.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        ValueError: the quad does not touch the photo.
    """
    height, width = photo.shape[:2]
    border = max(round(quad.side * _BORDER), 3)
    low, high = np.floor(quad.corners.min(axis=0)).astype(int), np.ceil(quad.corners.max(axis=0)).astype(int)
    left, top = np.maximum(low - border, 0)
    right, bottom = np.minimum(high + border, (width, height))
    if left >= right or top >= bottom:
        raise ValueError(f"the quad around {quad.centre} does not touch the photo of {width}×{height} pixels")

    region = part_of(photo, left, top, right, bottom)
    scale = min(1.0, _OVERSAMPLING * size / quad.side)
    if scale < 1:
        reduced_size = max(1, round(region.width * scale)), max(1, round(region.height * scale))
        region = region.resize(reduced_size, Image.Resampling.BICUBIC)
    per_pixel = np.array(region.size) / (right - left, bottom - top)
    corners = (quad.corners + 0.5 - (left, top)) * per_pixel  # edges at integers from here on, as in Pillow

    overhang = np.array([-low, high - (width, height)])  # [[left, top], [right, bottom]], negative: inside
    if overhang.max() > -_PADDING_MARGIN_PX:
        pad = np.maximum(overhang + border, round(_MIN_PAD * quad.side))
        pad = np.maximum(np.rint(pad * per_pixel).astype(int), 1)
        region = _pad(region, pad, quad.side * scale)
        corners += pad[0]

    grid = max(size, math.ceil((_OF_COARSE if scale == 1 else _OVERSAMPLING) * min(size, quad.side)))
    origin, along_x, along_y = corners[0], (corners[3] - corners[0]) / grid, (corners[1] - corners[0]) / grid
    affine = np.column_stack([along_x, along_y, origin]).ravel()
    turned = region.transform((grid, grid), Image.Transform.AFFINE, tuple(affine), Image.Resampling.BILINEAR)
    return pixels_of(turned.resize((size, size), Image.Resampling.LANCZOS))


def part_of(photo: NDArray[np.uint8], left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Copy a rectangle of a photo, (H, W, 3) uint8 RGB, into a picture of its own."""
    # Pillow alone takes five times as long over rows that do not follow each other in memory.
    return Image.fromarray(np.ascontiguousarray(photo[top:bottom, left:right]))


def _pad(region: Image.Image, pad: NDArray[np.int_], side: float) -> Image.Image:
    """Continue a picture beyond its edges by reflection, towards a blur and then the median colour, as FFHQ does.

    Args:
        region: RGB picture.
        pad: [[left, top], [right, bottom]] in pixels, at least 1.
        side: the quad's edge in pixels of `region`.
    """
    (left, top), (right, bottom) = pad
    picture = Image.fromarray(np.pad(np.asarray(region), ((top, bottom), (left, right), (0, 0)), mode="reflect"))
    width, height = picture.size
    sigma = side * _BLUR_SIGMA
    factor = max(1, int(sigma / _BLUR_AT))
    small = picture.reduce(factor)
    box = 0, 0, width / factor, height / factor
    soft = small.filter(ImageFilter.GaussianBlur(sigma / factor)).resize(picture.size, Image.Resampling.BILINEAR, box)
    across, down = _ramp(width, left, right), _ramp(height, top, bottom)
    picture.paste(soft, mask=_mask(3 * across + 1, 3 * down + 1))
    median = np.median(np.asarray(picture.reduce(factor)), axis=(0, 1))
    picture.paste(tuple(np.rint(median).astype(int)), mask=_mask(across, down))
    return picture


def _ramp(length: int, before: int, after: int) -> NDArray[np.float32]:
    """0 at the photo's edge, 1 at the outer edge, negative inside the photo."""
    inwards = np.arange(length, dtype=np.float32)
    return np.subtract(1, np.minimum(inwards / before, inwards[::-1] / after), dtype=np.float32)


def _mask(across: NDArray[np.float32], down: NDArray[np.float32]) -> Image.Image:
    """The larger of two shares, by column and by row, cut off at 0 and 1."""
    x, y = (np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8) for share in (across, down))
    return Image.fromarray(np.maximum.outer(y, x))
