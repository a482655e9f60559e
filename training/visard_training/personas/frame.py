"""The common frame of all personas, and the files for frame and personas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from visard_errors import DataError
from visard_export.networks.atlas import Atlas
from visard_preprocess.files import replace_atomically
from visard_training.data.faces import GENDERS, Gender
from visard_training.personas.shapes import ShapeModel

ATLAS_FILE, SHAPES_FILE = "atlas.npz", "shapes.npz"
DAMAGED = (OSError, KeyError, ValueError, EOFError, BadZipFile)  # what numpy raises over files that are not whole


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the personas of an atlas lie, and the shapes that a generator is taught with.

    Attributes:
        model: what a shape may keep of a face.
        frame: (2, 75, 2), closed and open mouth: the frame that all personas are laid into, in pixels of the crop.
        persona: gender → (2, 75, 2): the mean shape of its personas.
        corner: top left of a tile, in pixels of the crop.
        scale: pixels of the crop in a pixel of a tile.
    """

    model: ShapeModel = field(repr=False)
    frame: NDArray[np.float64] = field(repr=False)
    persona: dict[Gender, NDArray[np.float64]] = field(repr=False)
    corner: tuple[float, float]
    scale: float

    def to_tile(self, points: NDArray[Any]) -> NDArray[Any]:
        """Pixels of the crop → pixels of a tile, both counted from the centre of the first one."""
        moved: NDArray[Any] = (points - np.array(self.corner)) / self.scale
        return moved


def write_personas(folder: Path, atlas: Atlas, frame: Frame) -> None:
    """Write an atlas and its frame, each whole or not at all."""
    shapes: dict[str, Any] = {"mean": frame.model.mean, "modes": frame.model.modes, "frame": frame.frame}
    _write(folder / SHAPES_FILE, np.savez, corner=frame.corner, scale=frame.scale, **shapes, **frame.persona)
    _write(folder / ATLAS_FILE, np.savez_compressed, to_male=atlas.to_male, to_female=atlas.to_female)


def _write(path: Path, save: Callable[..., None], **arrays: Any) -> None:
    def fill(new: Path) -> None:
        with new.open("wb") as file:  # given a name, numpy would add a suffix of its own
            save(file, **arrays)

    replace_atomically(path, fill)


@contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Open an `.npz` file; what is not whole raises one of `DAMAGED`. Given a path, numpy would leave it open then."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


def read_frame(folder: Path) -> Frame:
    """Read the shapes that `write_personas` left.

    Raises:
        DataError: the folder is missing or damaged.
    """
    try:
        with open_arrays(folder / SHAPES_FILE) as d:
            return Frame(
                model=ShapeModel(d["mean"], d["modes"]),
                frame=d["frame"],
                persona={gender: d[gender] for gender in GENDERS},
                corner=(float(d["corner"][0]), float(d["corner"][1])),
                scale=float(d["scale"]),
            )
    except DAMAGED as error:
        raise DataError(f"'{folder}' holds no personas ({error}): make them with `visard train personas`") from error


def read_atlas(folder: Path) -> Atlas:
    """Read the personas that `write_personas` left.

    Raises:
        DataError: the folder is missing or damaged.
    """
    frame = read_frame(folder)
    try:
        with open_arrays(folder / ATLAS_FILE) as d:
            return Atlas(to_male=d["to_male"], to_female=d["to_female"], corner=frame.corner, scale=frame.scale)
    except DAMAGED as error:
        raise DataError(f"'{folder}' holds no personas ({error}): make them with `visard train personas`") from error
