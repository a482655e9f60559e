"""What distinguishes networks of the same kind, and the sizes that they work at. Importing it needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Interval
from typing_extensions import Doc

CLASSIFIER_SIZE = 224  # side of what the classifier sees

Head = Literal["image", "persona"]
# Channels in: RGB; for a persona also where each pixel lies (x, y) and the direction.
# Channels out: RGB; or where the surroundings come from (x, y), where in the personas' frame each pixel lies (x, y),
# and logits of being face and of being bare skin.
INPUT_CHANNELS: dict[Head, int] = {"image": 3, "persona": 6}
HEAD_CHANNELS: dict[Head, int] = {"image": 3, "persona": 6}

IMAGE_SIZE = 512  # side of an aligned face
FIRST_DOWNSAMPLING = 4  # index in the Sequential: 0 pad, 1 convolution, 2 norm, 3 ReLU stand before it
LAYERS_PER_STEP = 3  # convolution, norm, ReLU

MAX_NGF, MAX_DOWNSAMPLINGS, MAX_BLOCKS = 256, 6, 32


@dataclass(frozen=True, kw_only=True)
class Pix2PixHDArchitecture:
    """What distinguishes one generator from another; the defaults are the published one.

    A convolution that halves the size doubles the channels.
    """

    head: Annotated[
        Head, Doc("'image' ends in tanh and is the result; 'persona' are fields and masks, see `HEAD_CHANNELS`.")
    ] = "image"
    ngf: Annotated[int, Interval(ge=1, le=MAX_NGF), Doc("Channels of the first layer.")] = 64
    n_downsampling: Annotated[int, Interval(ge=1, le=MAX_DOWNSAMPLINGS), Doc("How often the size is halved.")] = 4
    n_blocks: Annotated[int, Interval(ge=1, le=MAX_BLOCKS), Doc("Residual blocks at the smallest size.")] = 9
    size: Annotated[
        int, Doc("Side in pixels at which the network works; that with an image head works at the size of the face.")
    ] = IMAGE_SIZE

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ValueError(f"head must be one of {get_args(Head)}, not '{self.head}'")
        for name, value, most in (
            ("ngf", self.ngf, MAX_NGF),
            ("n_downsampling", self.n_downsampling, MAX_DOWNSAMPLINGS),
            ("n_blocks", self.n_blocks, MAX_BLOCKS),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be 1..{most}, not {value}")
        if self.head == "image" and self.size != IMAGE_SIZE:
            raise ValueError(f"the image head works at {IMAGE_SIZE} pixels, not {self.size}")
        step = 2**self.n_downsampling
        if not 2 * step <= self.size <= IMAGE_SIZE or self.size % step or IMAGE_SIZE % self.size:
            # The residual blocks reflect one pixel, so two must be left; the photo is shrunk by a whole factor.
            raise ValueError(f"size must divide {IMAGE_SIZE} and be a multiple of {step}, at least {2 * step}")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, size: int = IMAGE_SIZE) -> Pix2PixHDArchitecture:
        """Read the architecture off a state dict's shapes; what else they hold is not judged here.

        Raises:
            ValueError: the layers that tell it are missing, or a size is not one of ours.
        """
        blocks = [
            int(found[1])
            for name in shapes
            if (found := re.fullmatch(r"model\.(\d{1,4})\.conv_block\.1\.weight", name))
        ]
        match shapes.get("model.1.weight"):
            case (ngf, 3 | 6, 7, 7) if blocks:
                head: Head = "image" if shapes["model.1.weight"][1] == INPUT_CHANNELS["image"] else "persona"
            case other:
                raise ValueError(
                    f"'model.1.weight' should have the shape (ngf, 3, 7, 7) or (ngf, 6, 7, 7), found "
                    f"{other or 'nothing'}, and residual blocks should follow, found {len(blocks)}"
                )
        n_downsampling = (min(blocks) - FIRST_DOWNSAMPLING) // LAYERS_PER_STEP
        last = min(blocks) + len(blocks) + LAYERS_PER_STEP * n_downsampling + 1  # + 1: the padding before it
        channels = (shapes.get(f"model.{last}.weight") or (0,))[0]
        if channels != HEAD_CHANNELS[head]:
            raise ValueError(
                f"'model.{last}.weight' should have {HEAD_CHANNELS[head]} output channels ({head}), found {channels}"
            )
        return cls(head=head, ngf=ngf, n_downsampling=n_downsampling, n_blocks=len(blocks), size=size)


MAX_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class ResNet18Architecture:
    """What distinguishes one ResNet-18 from another.

    Attributes:
        width: channels of the first stage; 64 is the published one.
    """

    width: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"width must be 1..{MAX_WIDTH}, not {self.width}")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> ResNet18Architecture:
        """Read the architecture off a state dict's shapes; what else they hold is not judged here.

        Raises:
            ValueError: the first convolution is missing, or its size is not one of ours.
        """
        match shapes.get("conv1.weight"):
            case (width, 3, 7, 7):
                return cls(width=width)
            case other:
                raise ValueError(f"'conv1.weight' should have the shape (width, 3, 7, 7), found {other or 'nothing'}")
