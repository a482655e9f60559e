"""Prepared faces as the gender classifier sees them: resized once, by the same matrices as in the served graph."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from visard_errors import DataError
from visard_export.graphs import IMAGENET_DEVIATION, IMAGENET_MEAN, resize_matrix
from visard_export.networks.architectures import CLASSIFIER_SIZE
from visard_preprocess.files import replace_atomically
from visard_preprocess.geometry import CROP_SIZE
from visard_preprocess.machine import cores
from visard_training.data.faces import FACES_FILE, Sample, read_faces
from visard_training.runs.progress import track

PIXELS_FILE = f"classifier_{CLASSIFIER_SIZE}.npy"


def classifier_pixels(cache: Path, console: Console | None = None) -> NDArray[np.uint8]:
    """Resize all faces of a cache as the served graph does, once; they are kept beside it.

    Returns:
        (faces, 224, 224, 3) uint8 RGB, mapped from disk, in the order of `read_faces`. Rounding to whole grey levels
        is the only difference from what the served network sees.
    """
    path = cache / PIXELS_FILE
    samples = read_faces(cache)
    if path.is_file() and path.stat().st_mtime_ns >= (cache / FACES_FILE).stat().st_mtime_ns:
        pixels = np.load(path, mmap_mode="r")
        if pixels.shape == (len(samples), CLASSIFIER_SIZE, CLASSIFIER_SIZE, 3):
            return cast("NDArray[np.uint8]", pixels)
    matrix = resize_matrix(CROP_SIZE, CLASSIFIER_SIZE).numpy()

    def write(new: Path) -> None:
        shape = (len(samples), CLASSIFIER_SIZE, CLASSIFIER_SIZE, 3)
        pixels = np.lib.format.open_memmap(new, "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
        with ThreadPoolExecutor(cores()) as pool:
            faces = pool.map(lambda sample: _resize(read_aligned(sample), matrix), samples)
            for i, face in enumerate(track(faces, f"Resizing {cache.name}", len(samples), console)):
                pixels[i] = face
        pixels.flush()

    replace_atomically(path, write)
    return cast("NDArray[np.uint8]", np.load(path, mmap_mode="r"))


def read_aligned(sample: Sample) -> NDArray[np.uint8]:
    """Decode one aligned face.

    Returns:
        (512, 512, 3) uint8 RGB.

    Raises:
        DataError: the cache was damaged after it had been prepared.
    """
    try:
        face = np.asarray(Image.open(sample.path, formats=["JPEG"]).convert("RGB"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{sample.path}' is damaged ({error}): remove the cache and prepare it again") from error
    if face.shape != (CROP_SIZE, CROP_SIZE, 3):
        raise DataError(f"'{sample.path}' has the shape {face.shape}: remove the cache and prepare it again")
    return face


def _resize(face: NDArray[np.uint8], matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    rows = (matrix @ face.reshape(CROP_SIZE, -1).astype(np.float32)).reshape(CLASSIFIER_SIZE, CROP_SIZE, 3)
    return np.rint(matrix @ rows).clip(0, 255).astype(np.uint8)  # the matrix applies to the columns of every row


class Pixels:
    """The faces of several caches, one after the other."""

    def __init__(self, caches: Sequence[NDArray[np.uint8]]) -> None:
        self._caches = caches
        self._starts = np.cumsum([0, *(len(cache) for cache in caches)])

    def batch(self, indices: NDArray[np.int64], size: int = CLASSIFIER_SIZE) -> Tensor:
        """(N, 3, size, size) float32 in 0..1."""
        faces = np.empty((len(indices), CLASSIFIER_SIZE, CLASSIFIER_SIZE, 3), np.uint8)
        for i, index in enumerate(indices):
            cache = int(np.searchsorted(self._starts, index, side="right")) - 1
            faces[i] = self._caches[cache][index - self._starts[cache]]
        pictures = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255
        if size == CLASSIFIER_SIZE:
            return pictures
        return functional.interpolate(pictures, size, mode="bilinear", antialias=True)


def normalise(pictures: Tensor) -> Tensor:
    """Bring (N, 3, S, S) float in 0..1 to what the network takes."""
    mean, deviation = (
        torch.tensor(value, device=pictures.device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_DEVIATION)
    )
    return (pictures - mean) / deviation
