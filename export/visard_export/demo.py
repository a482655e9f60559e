"""The demo weights, and random ones of any size for tests and benchmarks.

Random weights show that the pipeline runs, not what it can do: they call themselves untrained in their metadata, and
that word travels into the provenance of every model made from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from visard_export.checkpoints import save_checkpoint
from visard_export.networks.architectures import IMAGE_SIZE, Pix2PixHDArchitecture, ResNet18Architecture
from visard_export.networks.atlas import AGES, EXPRESSIONS, TILE_SHAPE, TONES, Atlas
from visard_export.networks.persona import PersonaGenerator, TraitsNetwork
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18
from visard_export.prebuilt import CLASSIFIER_FILE, PERSONA_FILE, WEIGHTS_FOLDER

LICENCE = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class CheckpointPaths:
    """Where the weights of one repository lie; a persona generator serves both directions."""

    classifier: Path
    to_male: Path
    to_female: Path


def demo_checkpoints() -> CheckpointPaths:
    """Find the demo weights, which are installed with this package."""
    persona = WEIGHTS_FOLDER / PERSONA_FILE
    return CheckpointPaths(classifier=WEIGHTS_FOLDER / CLASSIFIER_FILE, to_male=persona, to_female=persona)


def random_checkpoints(
    folder: Path, classifier: ResNet18Architecture, generator: Pix2PixHDArchitecture
) -> CheckpointPaths:
    """Write untrained checkpoints, the same ones every time.

    Args:
        folder: an existing folder.
        classifier: its sizes.
        generator: of two image-head generators, or of the trunk of one persona generator.
    """
    is_persona = generator.head == "persona"
    paths = CheckpointPaths(
        classifier=folder / CLASSIFIER_FILE,
        to_male=folder / (PERSONA_FILE if is_persona else "to_male.safetensors"),
        to_female=folder / (PERSONA_FILE if is_persona else "to_female.safetensors"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_checkpoint(paths.classifier, ResNet18(classifier), trained=False, licence=LICENCE)
        if is_persona:
            network = PersonaGenerator.of(Pix2PixHDGenerator(generator), TraitsNetwork(), plain_atlas())
            save_checkpoint(paths.to_male, network, trained=False, licence=LICENCE)
        else:
            for path in (paths.to_male, paths.to_female):
                save_checkpoint(path, Pix2PixHDGenerator(generator), trained=False, licence=LICENCE)
    return paths


def plain_atlas(count: int = 2) -> Atlas:
    """Personas of one colour each: tiles that cover the middle of the crop, no face in them.

    Args:
        count: of personas in each group.
    """
    height, width = TILE_SHAPE
    colours = np.random.default_rng(0).integers(60, 200, (2, TONES, AGES, EXPRESSIONS, count, 1, 1, 3), np.uint8)
    to_male, to_female = np.broadcast_to(colours, (2, TONES, AGES, EXPRESSIONS, count, height, width, 3))
    middle = (IMAGE_SIZE - 1) / 2
    return Atlas(
        to_male=to_male, to_female=to_female, corner=(middle - (width - 1) / 2, middle - (height - 1) / 2), scale=1.0
    )
