"""The options for training a swapper. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval
from typing_extensions import Doc

from visard.declared import check
from visard_export.networks.architectures import IMAGE_SIZE, Pix2PixHDArchitecture
from visard_training.runs.options import UNKNOWN_LICENCE, Licence, MixedPrecision, SaveEvery

Direction = Literal["to_male", "to_female"]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorArchitecture:
    """What distinguishes one discriminator from another; the defaults are the published one."""

    ndf: Annotated[int, Interval(ge=1), Doc("Channels after the first convolution.")] = 64
    n_layers: Annotated[int, Interval(ge=1), Doc("Convolutions with stride 2; two with stride 1 follow.")] = 3
    n_scales: Annotated[
        int,
        Interval(ge=1),
        Doc("How many discriminators look at the pair, each at half the size of the one before."),
    ] = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What each loss counts; a weight of zero leaves the loss and what it needs out. The defaults are the published."""

    adversarial: Annotated[float, Interval(ge=0), Doc("Weight of the discriminator's verdict.")] = 1.0
    feature_matching: Annotated[float, Interval(ge=0), Doc("Weight of the discriminator's features.")] = 10.0
    perceptual: Annotated[float, Interval(ge=0), Doc("Weight of the perceptual loss.")] = 10.0
    reconstruction: Annotated[float, Interval(ge=0), Doc("Weight of the pixels and their gradients.")] = 0.0

    def __post_init__(self) -> None:
        """Refuse weights below zero, and a training without a loss."""
        check(self)
        if not sum(asdict(self).values()):
            raise ValueError(f"loss weights must not be all zero: {asdict(self)}")

    @property
    def needs_discriminator(self) -> bool:
        """Whether any loss looks through a discriminator."""
        return self.adversarial > 0 or self.feature_matching > 0


@dataclass(frozen=True, kw_only=True)
class SwapperOptions:
    """How to train; a training that is resumed must be given the same.

    The generator has an image head, and the photo's size is a multiple of what it shrinks photos by. Weights and losses
    stay in float32 whatever the precision. Augmentation varies both sides of a pair alike; checkpointing computes the
    residual blocks twice instead of keeping them in memory.
    """

    direction: Annotated[Direction, Doc("Which side of a pair is made of the other.")]
    generator: Annotated[Pix2PixHDArchitecture, Doc("Its architecture.")] = field(default_factory=Pix2PixHDArchitecture)
    initial: Annotated[Path | None, Doc("Generator to start from (.pth, .safetensors), of the same architecture.")] = (
        None
    )
    discriminator: Annotated[DiscriminatorArchitecture, Doc("Its architecture.")] = field(
        default_factory=DiscriminatorArchitecture
    )
    photo_size: Annotated[int, Doc("Side of the training pictures.")] = IMAGE_SIZE
    weights: Annotated[LossWeights, Doc("Of the losses.")] = field(default_factory=LossWeights)
    batch_size: Annotated[int, Interval(ge=1), Doc("Pairs of one step, over all GPUs.")] = 1
    epochs: Annotated[int, Interval(ge=1), Doc("How often every pair is seen.")] = 200
    minutes: Annotated[float | None, Interval(gt=0), Doc("End earlier, after so long.")] = None
    learning_rate: Annotated[float, Interval(gt=0), Doc("Constant at first, then falling linearly to zero.")] = 2e-4
    constant_share: Annotated[float, Interval(ge=0, lt=1), Doc("Of the training, in which the rate does not fall.")] = (
        0.5
    )
    augmentation: Annotated[Literal["flip", "strong"], Doc("'strong' also turns, relights, blurs and compresses.")] = (
        "flip"
    )
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: Annotated[bool, Doc("Less memory for a fifth more time.")] = False
    seed: Annotated[int, Doc("Decides weights, order and augmentation.")] = 0
    save_every: SaveEvery = 500
    sample_every: Annotated[int, Interval(ge=1), Doc("Steps between two sheets of samples.")] = 500
    half: Annotated[bool, Doc("Export in half precision.")] = False
    licence: Licence = UNKNOWN_LICENCE

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check(self)
        if self.generator.head != "image":
            raise ValueError(f"only an image head learns from pairs, not '{self.generator.head}'")
        step = 2**self.generator.n_downsampling
        if self.photo_size % step or not 2 * step <= self.photo_size <= IMAGE_SIZE:
            raise ValueError(
                f"photo_size must be a multiple of {step} in {2 * step}..{IMAGE_SIZE}, not {self.photo_size}"
            )
