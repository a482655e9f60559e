"""Tiny untrained checkpoints and real faces, for tests that need an export in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_export.demo import CheckpointPaths, random_checkpoints
from visard_export.networks.architectures import Head, Pix2PixHDArchitecture, ResNet18Architecture

SMALL_CLASSIFIER = ResNet18Architecture(width=8)
ASTRONAUT = Path(__file__).parents[2] / "server" / "visard_server" / "data" / "astronaut.jpg"
FACE_BOXES = ((140, 0, 340, 200), (100, 0, 400, 300))  # left, top, right, bottom; around the face of ASTRONAUT


def small_generator(head: Head = "image") -> Pix2PixHDArchitecture:
    """Give the smallest generator that still has every kind of layer."""
    return Pix2PixHDArchitecture(head=head, ngf=4, n_downsampling=2, n_blocks=1, size=512 if head == "image" else 128)


def small_checkpoints(folder: Path, head: Head = "persona") -> CheckpointPaths:
    """Write a classifier and generators that are exported in a few seconds."""
    return random_checkpoints(folder, SMALL_CLASSIFIER, small_generator(head))


def aligned_faces() -> NDArray[np.uint8]:
    """Cut (2, 512, 512, 3) uint8 RGB faces out of the sample photo."""
    photo = Image.open(ASTRONAUT).convert("RGB")
    return np.stack([np.asarray(photo.resize((512, 512), box=box)) for box in FACE_BOXES])
