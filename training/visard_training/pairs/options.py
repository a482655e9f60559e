"""The options for making pairs. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from typing_extensions import Doc

from visard.declared import check


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Options:
    """What decides about the pairs, besides the two networks.

    `seed` is the number of the first sample; `samples` go through steps 1 to 4, see `stylegan2_pairs`. `psi` 1 keeps w
    as it is, less draws it towards the mean face.
    """

    min_certainty: Annotated[
        float, Interval(ge=0.51, le=0.999), Doc("What the classifier must reach on both sides of a pair.")
    ] = 0.9
    seed: Annotated[int, Interval(ge=0, le=2**31), Doc("Decides the faces and their order.")] = 0
    samples: Annotated[int, Interval(ge=2), Doc("Faces that the two class centres are taken from.")] = 10_000
    psi: Annotated[float, Interval(ge=0.01, le=1.0), Doc("Truncation: less variety for fewer broken faces.")] = 0.7
    layers: Annotated[
        int | None,
        Interval(ge=1),
        Doc("Move only the first so many layers: 8 of FFHQ's 18 change shapes and leave colours."),
    ] = None
    holdout: Annotated[float, Interval(ge=0.0, le=0.5), Doc("Share never trained on.")] = 0.05

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)
