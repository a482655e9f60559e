"""The options for training the classifier. Importing them needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval
from typing_extensions import Doc

from visard.declared import check
from visard_export.networks.architectures import CLASSIFIER_SIZE, MAX_WIDTH
from visard_training.runs.options import UNKNOWN_LICENCE, Half, Licence, MixedPrecision, SaveEvery


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """How to train; the defaults are the published recipe.

    Groups of `balance_by` count by the square root of their rarity, so that a handful of faces is not memorised.
    The served network sees pictures of 224 pixels; smaller ones are faster. There is a state after each epoch too.
    """

    width: Annotated[
        int, Interval(ge=1, le=MAX_WIDTH), Doc("Channels of the first stage; 64 is the published network.")
    ] = 64
    initial: Annotated[Path | None, Doc("Weights to start from (.pth, .safetensors), of the same width.")] = None
    epochs: Annotated[int, Interval(ge=1), Doc("How often every face is seen.")] = 3
    batch_size: Annotated[int, Interval(ge=2), Doc("Faces of one step, over all GPUs.")] = 16
    learning_rate: Annotated[float, Interval(gt=0, lt=math.inf), Doc("At its highest.")] = 0.001
    schedule: Annotated[Literal["constant", "cosine"], Doc("'cosine' rises briefly, then falls to zero.")] = "constant"
    momentum: Annotated[float, Interval(ge=0, le=1), Doc("Of the gradient descent.")] = 0.9
    weight_decay: Annotated[float, Interval(ge=0, le=1), Doc("Pull of the weights towards zero.")] = 0.0
    label_smoothing: Annotated[float, Interval(ge=0, le=0.5), Doc("Against mistaken labels.")] = 0.0
    balance: Annotated[Literal["none", "sampler", "weights"], Doc("Draw or weight both classes alike.")] = "none"
    balance_by: Annotated[
        str, Doc("Column of the manifest whose rarer groups count more as well, such as ethnicity.")
    ] = ""
    augmentation: Annotated[
        Literal["flip", "strong"],
        Doc(
            "'strong' also changes hair and background, turns, scales, relights, blurs, compresses and covers: for few "
            "faces."
        ),
    ] = "flip"
    size: Annotated[
        int,
        Interval(ge=33, le=CLASSIFIER_SIZE),
        Doc("Edge of the pictures; below 224 only for weights that another training starts from."),
    ] = CLASSIFIER_SIZE
    mixed_precision: MixedPrecision = "no"
    save_every: SaveEvery = 200
    half: Half = False
    licence: Licence = UNKNOWN_LICENCE
    seed: Annotated[int, Doc("Decides weights, order and augmentation.")] = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check(self)
        if self.balance_by and self.balance == "none":
            raise ValueError(f"balance_by '{self.balance_by}' says by what, not how: set balance too")
