"""The options for making personas and for training their generator. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from typing_extensions import Doc

from visard.declared import check
from visard_export.networks.architectures import (
    MAX_BLOCKS,
    MAX_DOWNSAMPLINGS,
    MAX_NGF,
    Pix2PixHDArchitecture,
)
from visard_training.runs.options import UNKNOWN_LICENCE, Half, Licence, MixedPrecision, SaveEvery

FEWEST_DONORS = 8  # an average of fewer is recognised
SIZE = 128  # side at which the trunk works


@dataclass(frozen=True, kw_only=True)
class PersonaOptions:
    """How personas are made.

    `push` is in units of the difference between both genders' mean faces. The finest detail, pores and lashes, is what
    an average loses.
    """

    count: Annotated[int, Interval(ge=1), Doc("Personas for each gender, tone of skin (3) and age (2).")] = 4
    donors: Annotated[
        int, Interval(ge=FEWEST_DONORS), Doc(f"Donors averaged in each of them, at least {FEWEST_DONORS}.")
    ] = FEWEST_DONORS
    push: Annotated[float, Interval(ge=0), Doc("How far personas go beyond their gender's mean face.")] = 0.5
    skin: Annotated[float, Interval(ge=0, le=1), Doc("Share of one donor's finest detail on top of the average.")] = 0.8
    seed: Annotated[int, Doc("Decides who is averaged with whom.")] = 0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class PersonaTrainingOptions:
    """How to train; a training that is resumed must be given the same.

    A face makes one lesson; the traits take four times as many in a step as the trunk. The rate falls linearly to zero
    after two fifths of the steps. Weights and losses stay in float32 whatever the precision.
    """

    steps: Annotated[int, Interval(ge=1), Doc("Of the trunk, which learns where things go.")] = 9000
    traits_steps: Annotated[int, Interval(ge=1), Doc("Of the network that chooses tone, age and mouth.")] = 3000
    batch_size: Annotated[int, Interval(ge=1), Doc("Faces of one step.")] = 8
    learning_rate: Annotated[float, Interval(gt=0), Doc("At its highest.")] = 1.5e-3
    ngf: Annotated[int, Interval(ge=1, le=MAX_NGF), Doc("Channels of the trunk's first layer.")] = 16
    n_downsampling: Annotated[
        int, Interval(ge=1, le=MAX_DOWNSAMPLINGS), Doc("How often the trunk halves the size.")
    ] = 3
    n_blocks: Annotated[int, Interval(ge=1, le=MAX_BLOCKS), Doc("Residual blocks at the smallest size.")] = 5
    mixed_precision: MixedPrecision = "no"
    save_every: SaveEvery = 500
    half: Half = False
    licence: Licence = UNKNOWN_LICENCE
    seed: Annotated[int, Doc("Decides weights and batches.")] = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check(self)
        self.architecture()

    def architecture(self) -> Pix2PixHDArchitecture:
        """The trunk's."""
        return Pix2PixHDArchitecture(
            head="persona", ngf=self.ngf, n_downsampling=self.n_downsampling, n_blocks=self.n_blocks, size=SIZE
        )
