"""Tiny untrained checkpoints and real faces, for tests that need an export in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from visard_export.demo import CheckpointPaths, plain_atlas, random_checkpoints
from visard_export.networks.architectures import Head, Pix2PixHDArchitecture, ResNet18Architecture
from visard_export.networks.persona import PersonaGenerator, TraitsNetwork
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18

SMALL_CLASSIFIER = ResNet18Architecture(width=8)
ASTRONAUT = Path(__file__).parents[2] / "server" / "visard_server" / "data" / "astronaut.jpg"
FACE_BOXES = ((140, 0, 340, 200), (100, 0, 400, 300))  # left, top, right, bottom; around the face of ASTRONAUT


def small_generator(head: Head = "image") -> Pix2PixHDArchitecture:
    """Give the smallest generator that still has every kind of layer."""
    return Pix2PixHDArchitecture(head=head, ngf=4, n_downsampling=2, n_blocks=1, size=512 if head == "image" else 128)


def small_checkpoints(folder: Path, head: Head = "persona") -> CheckpointPaths:
    """Write a classifier and generators that are exported in a few seconds."""
    return random_checkpoints(folder, SMALL_CLASSIFIER, small_generator(head))


def small_network(kind: Literal["classifier"] | Head) -> ResNet18 | Pix2PixHDGenerator | PersonaGenerator:
    """Make a network of each kind, the same one every time, as it is served."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "classifier":
            return ResNet18(SMALL_CLASSIFIER).eval()
        network = Pix2PixHDGenerator(small_generator(kind)).eval()
        last = network.model[-1 if kind == "persona" else -2].weight
        assert isinstance(last, torch.Tensor)
        # Strong contrast, so that differences are grey levels and not fractions of one.
        torch.nn.init.normal_(last, 0, 0.01 if kind == "persona" else 0.1)
        return PersonaGenerator.of(network, TraitsNetwork(), plain_atlas()) if kind == "persona" else network


def aligned_faces() -> NDArray[np.uint8]:
    """Cut (2, 512, 512, 3) uint8 RGB faces out of the sample photo."""
    photo = Image.open(ASTRONAUT).convert("RGB")
    return np.stack([np.asarray(photo.resize((512, 512), box=box)) for box in FACE_BOXES])
