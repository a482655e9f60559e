"""The frame that all personas are laid into, and the files that hold it and them.

It knows nothing about donors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visard_errors import DataError
from visard_export.networks.persona import Atlas
from visard_training.data import GENDERS, Gender
from visard_training.shapes import ShapeModel

ATLAS_FILE, SHAPES_FILE = "atlas.npz", "shapes.npz"


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
    """Write an atlas and its frame."""
    np.savez(
        folder / SHAPES_FILE,
        mean=frame.model.mean,
        modes=frame.model.modes,
        frame=frame.frame,
        corner=frame.corner,
        scale=frame.scale,
        **frame.persona,
    )
    np.savez_compressed(folder / ATLAS_FILE, to_male=atlas.to_male, to_female=atlas.to_female)


def read_frame(folder: Path) -> Frame:
    """Read the shapes that `write_personas` left.

    Raises:
        DataError: the folder is missing or damaged.
    """
    try:
        with np.load(folder / SHAPES_FILE, allow_pickle=False) as d:
            return Frame(
                model=ShapeModel(d["mean"], d["modes"]),
                frame=d["frame"],
                persona={gender: d[gender] for gender in GENDERS},
                corner=(float(d["corner"][0]), float(d["corner"][1])),
                scale=float(d["scale"]),
            )
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"'{folder}' holds no personas ({error}): make them with `visard train personas`") from error


def read_atlas(folder: Path) -> Atlas:
    """Read the personas that `write_personas` left.

    Raises:
        DataError: the folder is missing or damaged.
    """
    frame = read_frame(folder)
    try:
        with np.load(folder / ATLAS_FILE, allow_pickle=False) as d:
            return Atlas(to_male=d["to_male"], to_female=d["to_female"], corner=frame.corner, scale=frame.scale)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"'{folder}' holds no personas ({error}): make them with `visard train personas`") from error
