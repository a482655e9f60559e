"""The persona generator: one pix2pixHD trunk for both directions, a small network for traits, and an atlas of personas.

The trunk sees the face and says only where things go: displacement fields and masks. What is drawn comes from the
atlas, pictures of nobody. `visard_export.persona_graph` puts both together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visard_export.networks.architectures import Pix2PixHDArchitecture
from visard_export.networks.atlas import DIRECTIONS, TONES, Atlas, encode_sheet
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator

SIZES = (64, 128, 256)  # at which a trunk may work
TRAITS_SIZE = 64  # side in pixels at which traits are read
TRAITS = TONES + 2  # logits of the tones, of old age, of an open mouth
_TRAITS_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class PersonaArchitecture:
    """What distinguishes one persona generator from another.

    Attributes:
        trunk: its sizes; its head is `persona`.
        atlas_bytes: lengths of the encoded atlases, to_male and to_female.
    """

    trunk: Pix2PixHDArchitecture
    atlas_bytes: tuple[int, int]

    def __post_init__(self) -> None:
        if self.trunk.head != "persona" or self.trunk.size not in SIZES:
            raise ValueError(f"the trunk must have the persona head and work at one of {SIZES}, not {self.trunk}")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, size: int) -> PersonaArchitecture:
        """Read the architecture off a state dict's shapes; what else they hold is not judged here.

        Raises:
            ValueError: the layers that tell it are missing, or a size is not one of ours.
        """
        trunk = {name.removeprefix("trunk."): shape for name, shape in shapes.items() if re.match(r"trunk\.", name)}
        lengths = [shapes.get(f"atlas_{direction}", ()) for direction in DIRECTIONS]
        if any(len(length) != 1 for length in lengths):
            raise ValueError(f"'atlas_to_male' and 'atlas_to_female' should be bytes, found shapes {lengths}")
        return cls(
            trunk=Pix2PixHDArchitecture.from_shapes(trunk, size=size), atlas_bytes=(lengths[0][0], lengths[1][0])
        )


class TraitsNetwork(nn.Module):
    """What of a face chooses among personas: tone, age, whether the mouth is open. No norms: light counts."""

    def __init__(self) -> None:
        super().__init__()
        width, layers = 3, []
        for wider in (_TRAITS_WIDTH, 2 * _TRAITS_WIDTH, 4 * _TRAITS_WIDTH, 4 * _TRAITS_WIDTH):
            layers += [nn.Conv2d(width, wider, 3, 2, 1), nn.ReLU()]
            width = wider
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(16 * width, TRAITS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 64, 64) RGB in −1..1 to (N, 5) logits."""
        y: Tensor = self.last(self.layers(x).flatten(1))
        return y


class PersonaGenerator(nn.Module):
    """Trunk, traits and atlas: everything of a persona generator that its checkpoint holds.

    Attributes:
        placement: (3,) float32: x and y of a tile's first pixel's centre in pixels of the aligned crop, and how many of
            those there are in a pixel of a tile.
        atlas_to_male: (B,) uint8, a WebP picture; see `atlas.decode_sheet`.
        atlas_to_female: likewise.
    """

    placement: Tensor
    atlas_to_male: Tensor
    atlas_to_female: Tensor

    def __init__(self, architecture: PersonaArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.trunk = Pix2PixHDGenerator(architecture.trunk)
        self.traits = TraitsNetwork()
        self.register_buffer("placement", torch.zeros(3))
        for direction, length in zip(DIRECTIONS, architecture.atlas_bytes, strict=True):
            self.register_buffer(f"atlas_{direction}", torch.zeros(length, dtype=torch.uint8))

    @classmethod
    def of(cls, trunk: Pix2PixHDGenerator, traits: TraitsNetwork, atlas: Atlas) -> PersonaGenerator:
        """Put trained parts together."""
        sheets = [torch.from_numpy(encode_sheet(atlas.sheet(direction))) for direction in DIRECTIONS]
        network = cls(PersonaArchitecture(trunk=trunk.architecture, atlas_bytes=(len(sheets[0]), len(sheets[1]))))
        network.trunk, network.traits = trunk, traits
        network.placement = torch.tensor([*atlas.corner, atlas.scale])
        network.atlas_to_male, network.atlas_to_female = sheets
        return network
