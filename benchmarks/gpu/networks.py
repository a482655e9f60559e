"""The networks that are measured, read and built with torch alone, and the faces that they get.

`full`: the published size (ngf 64, 512², 9 blocks), random weights from a seed; the other direction has another seed.
`demo`: the demo's persona generator and classifier with their own weights; both directions have one trunk.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import checkout
from visard_export import persona_graph
from visard_export.graphs import AnonymizerGraph, build_graph
from visard_export.networks.architectures import IMAGE_SIZE, Pix2PixHDArchitecture, ResNet18Architecture
from visard_export.networks.atlas import ROWS, TILE_SHAPE, Direction
from visard_export.networks.persona import PersonaArchitecture, PersonaGenerator
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18
from visard_export.options import Precision

Model = Literal["full", "demo"]
Norm = Literal["cast", "layer_norm", "instance_norm"]
Layout = Literal["nchw", "nhwc"]
Images = NDArray[np.uint8]
Network = TypeVar("Network", bound=nn.Module)

WEIGHTS = checkout.ROOT / "export" / "visard_export" / "weights"
PEOPLE = checkout.ROOT / "testing" / "visard_testing" / "people"
SEEDS = {"to_male": 0, "to_female": 1, "classifier": 2, "faces": 3, "tiles": 4}
PLAIN_PERSONAS = 2  # in a group, where the demo's cannot be decoded

_TYPES = {"F32": torch.float32, "F16": torch.float16, "U8": torch.uint8, "I64": torch.int64}

if not checkout.HAS_PILLOW:

    def _plain_tiles(_data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Tiles of noise in the shape of the personas': the same work, no picture."""
        seeded = np.random.default_rng(SEEDS["tiles"])
        return seeded.integers(0, 256, (ROWS * PLAIN_PERSONAS, 3, *TILE_SHAPE), np.uint8)

    vars(persona_graph)["decode_sheet"] = _plain_tiles


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: eight bytes with the length of a JSON header, the header, the tensors' bytes.

    Returns:
        Tensors by name, and the file's metadata.
    """
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(bytearray(data[first:last]), dtype=_TYPES[entry["dtype"]])
        tensors[name] = flat.view(entry["shape"])
    return tensors, metadata


def generator(model: Model, direction: Direction, tiny: bool = False) -> Pix2PixHDGenerator | PersonaGenerator:
    """Make a generator with its weights, on the CPU.

    Args:
        model: which.
        direction: of a full-size one, for its seed.
        tiny: a small network in place of the full size.
    """
    if model == "demo":
        tensors, metadata = read_safetensors(WEIGHTS / "persona.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        network = PersonaGenerator(PersonaArchitecture.from_shapes(shapes, size=int(metadata["size"])))
        network.load_state_dict(tensors)
        return network
    small = Pix2PixHDArchitecture(ngf=2, n_downsampling=2, n_blocks=1)
    return _seeded(direction, lambda: Pix2PixHDGenerator(small if tiny else Pix2PixHDArchitecture()))


def classifier(model: Model, tiny: bool = False) -> ResNet18:
    """Make a classifier with its weights, on the CPU: the demo's, or one of the published size from a seed."""
    if model == "demo":
        tensors, _ = read_safetensors(WEIGHTS / "gender_classifier.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        network = ResNet18(ResNet18Architecture.from_shapes(shapes))
        network.load_state_dict(tensors)
        return network
    return _seeded("classifier", lambda: ResNet18(ResNet18Architecture(width=8 if tiny else 64)))


def _seeded(seed: str, make: Callable[[], Network]) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[seed])
        return make()


def trunk_architecture(network: Pix2PixHDGenerator | PersonaGenerator) -> Pix2PixHDArchitecture:
    """The convolutions that are nearly all of a generator's work."""
    return network.architecture.trunk if isinstance(network, PersonaGenerator) else network.architecture


class _CastNorm(nn.Module):
    """The whole picture in float32 and back: what was served before layer norms."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return functional.instance_norm(x.float(), eps=1e-5).to(x.dtype)


class _LayerNorm(nn.Module):
    """Half in, half out, sums in float32: a layer norm over each channel's pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return functional.layer_norm(x, x.shape[2:], eps=1e-5)


class _InstanceNorm(nn.Module):
    """Half in, half out: torch's own instance norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return functional.instance_norm(x, eps=1e-5)


NORMS: dict[Norm, type[nn.Module]] = {"cast": _CastNorm, "layer_norm": _LayerNorm, "instance_norm": _InstanceNorm}


def with_norm(module: nn.Module, norm: Norm) -> nn.Module:
    """Put one kind of norm in the place of every instance norm of a network, and give the network back."""
    for name, child in module.named_children():
        if type(child).__name__ == "InstanceNorm":
            setattr(module, name, NORMS[norm]())
        else:
            with_norm(child, norm)
    return module


def placed(graph: nn.Module, device: str, norm: Norm, layout: Layout) -> nn.Module:
    """Put a graph on its device, with a kind of norm and its weights in a layout."""
    graph = with_norm(graph, norm).to(device)
    return graph.to(memory_format=torch.channels_last) if layout == "nhwc" else graph  # type: ignore[call-overload]


class Swapper(nn.Module):
    """A generator, and the classifier's judgement of its result: `anonymizer_to_*`."""

    outputs = ("swapped", "swapped_gender")

    def __init__(self, model: Model, direction: Direction, precision: Precision, tiny: bool) -> None:
        super().__init__()
        self.generator = build_graph(generator(model, direction, tiny), precision, direction)
        self.classifier = build_graph(classifier(model, tiny), precision)

    def forward(self, image: Tensor, persona: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, 512, 512, 3) uint8 and (N, 1) int32 to the same pictures swapped, and (N, 2) probabilities."""
        swapped = self.generator(image, persona)
        return swapped, self.classifier(swapped)


def fused(model: Model, precision: Precision, tiny: bool) -> AnonymizerGraph:
    """`anonymizer` as one graph: classifier, each face's own direction, classifier."""
    network = generator(model, "to_male", tiny)
    other = network if isinstance(network, PersonaGenerator) else generator(model, "to_female", tiny)
    return AnonymizerGraph(classifier(model, tiny), network, other, precision)


def faces() -> tuple[Images, str]:
    """Load the faces that everything is measured on, and say what they are.

    Returns:
        (12, 512, 512, 3) uint8 RGB.
    """
    if checkout.HAS_PILLOW:
        from PIL import Image

        people = sorted(PEOPLE.glob("*.jpg"))
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in people]), (
            f"{len(people)} generated portraits (CC0) of this repository, not aligned"
        )
    seeded = torch.Generator().manual_seed(SEEDS["faces"])
    coarse = torch.rand((12, 3, 6, 6), generator=seeded) * 255
    smooth = functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy(), (
        "12 smooth pictures from a seed, no faces: Pillow, which reads the repository's, is not here"
    )
