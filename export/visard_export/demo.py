"""Demo weights: the small trained ones where they are installed, random ones of the same shape otherwise.

Random weights show that the pipeline runs, not what it can do: they call themselves untrained in their metadata, and
that word travels into the passport of every model made from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from visard_export.checkpoints import save_checkpoint
from visard_export.networks.pix2pixhd import Pix2PixHDArchitecture, Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18, ResNet18Architecture

DEMO_CLASSIFIER = ResNet18Architecture(width=32)
DEMO_GENERATOR = Pix2PixHDArchitecture(head="warp", ngf=16, n_downsampling=3, n_blocks=4, size=128)

TRAINED_FOLDER = Path(__file__).parent / "weights"
LICENCE = "Apache-2.0"
MILD = 0.005  # deviation of a random warp head's last layer: a ripple that is seen, a face that is still one


@dataclass(frozen=True, kw_only=True)
class CheckpointPaths:
    """Where the three weights files of one repository lie."""

    classifier: Path
    to_male: Path
    to_female: Path


def demo_checkpoints(folder: Path) -> CheckpointPaths:
    """Find the trained demo weights, or write untrained ones into `folder`.

    Args:
        folder: an existing folder; nothing is written where the trained weights are installed.
    """
    trained = _paths(TRAINED_FOLDER)
    if all(path.is_file() for path in (trained.classifier, trained.to_male, trained.to_female)):
        return trained
    return random_checkpoints(folder, DEMO_CLASSIFIER, DEMO_GENERATOR)


def random_checkpoints(
    folder: Path, classifier: ResNet18Architecture, generator: Pix2PixHDArchitecture
) -> CheckpointPaths:
    """Write three untrained checkpoints, the same ones every time; a warp head gets a mild, visible effect."""
    paths = _paths(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_checkpoint(paths.classifier, ResNet18(classifier), trained=False, licence=LICENCE)
        for path in (paths.to_male, paths.to_female):
            network = Pix2PixHDGenerator(generator)
            if generator.head == "warp":
                last = network.model[-1]
                assert isinstance(last, nn.Conv2d)  # noqa: S101 - for the type checker
                nn.init.normal_(last.weight, 0.0, MILD)
            save_checkpoint(path, network, trained=False, licence=LICENCE)
    return paths


def _paths(folder: Path) -> CheckpointPaths:
    return CheckpointPaths(
        classifier=folder / "gender_classifier.safetensors",
        to_male=folder / "to_male.safetensors",
        to_female=folder / "to_female.safetensors",
    )
