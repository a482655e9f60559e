"""Weights files in and out: hostile bytes become a checked architecture and its tensors, or a `CheckpointError`.

A file is judged by its content: safetensors, or what `torch.load(weights_only=True)` reads. Neither executes code.
What a file holds must be one of the two networks exactly, in finite numbers.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from visard_errors import CheckpointError
from visard_export.networks.architectures import IMAGE_SIZE, Pix2PixHDArchitecture, ResNet18Architecture
from visard_export.networks.atlas import DIRECTIONS, decode_sheet
from visard_export.networks.persona import PersonaArchitecture, PersonaGenerator
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18

MAX_BYTES = 2 * 1024**3  # the published generator has 730 MB; an ONNX file ends at 2 GiB
MAX_NAMES = 12  # how many names an error message lists

Architecture = Pix2PixHDArchitecture | PersonaArchitecture | ResNet18Architecture
Network = Pix2PixHDGenerator | PersonaGenerator | ResNet18
_Shapes = Mapping[str, tuple[int, ...]]

_NETWORKS = {ResNet18Architecture: "resnet18", Pix2PixHDArchitecture: "pix2pixhd", PersonaArchitecture: "persona"}
# Instance norms saved by old versions of torch carry statistics that they never used.
_STALE = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One weights file that passed every check.

    Attributes:
        file_name: the file's name without its folder.
        sha256: of the file's bytes, in hexadecimal.
        architecture: which of the networks, and its sizes.
        trained: False for random weights, None where the file does not say.
        licence: of the weights, None where the file does not say.
        tensors: the network's state dict, on the CPU.
    """

    file_name: str
    sha256: str
    architecture: Architecture
    trained: bool | None
    licence: str | None
    tensors: Mapping[str, Tensor] = field(repr=False, compare=False)

    @property
    def network_name(self) -> str:
        """`resnet18`, `pix2pixhd` or `persona`."""
        return _NETWORKS[type(self.architecture)]

    def network(self) -> Network:
        """Build the network with these weights, in evaluation mode."""
        network = _on_meta(self.architecture)
        network.load_state_dict(self.tensors, assign=True)
        return network.eval()


def load_classifier(path: Path) -> Checkpoint:
    """Load a two-class ResNet-18.

    Raises:
        CheckpointError: the file is unsafe, damaged, too large or another network.
    """
    return _load(path, ("resnet18",))


def load_generator(path: Path) -> Checkpoint:
    """Load a pix2pixHD global generator with its image head, or a persona generator, which serves both directions.

    Raises:
        CheckpointError: the file is unsafe, damaged, too large or another network.
    """
    return _load(path, ("pix2pixhd", "persona"))


def save_checkpoint(path: Path, network: Network, *, trained: bool, licence: str) -> None:
    """Write a network of ours as safetensors, with what its shapes do not tell as metadata.

    Args:
        path: the file to write; its folder must exist.
        network: its weights go into the file.
        trained: False for random weights.
        licence: of the weights, as an SPDX identifier.
    """
    architecture = network.architecture
    metadata = {"format": "visard", "network": _NETWORKS[type(architecture)]}
    metadata |= {"trained": json.dumps(trained), "licence": licence}
    if isinstance(architecture, PersonaArchitecture):
        metadata |= {"size": str(architecture.trunk.size)}
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path, metadata)


def _load(path: Path, networks: tuple[str, ...]) -> Checkpoint:
    tensors, metadata = read_tensors(path)
    try:
        architecture = _architecture(networks, {name: tuple(t.shape) for name, t in tensors.items()}, metadata)
        if isinstance(architecture, PersonaArchitecture):
            for direction in DIRECTIONS:
                decode_sheet(tensors[f"atlas_{direction}"].numpy())
            if "placement" in tensors and not (tensors["placement"].shape == (3,) and tensors["placement"][2] > 0):
                raise ValueError("its placement should be x, y and a scale above zero")
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not a {networks[0]} checkpoint: {error}") from error
    return Checkpoint(
        file_name=path.name,
        sha256=sha256_of(path),
        architecture=architecture,
        trained={"true": True, "false": False}.get(metadata.get("trained", "")),
        licence=metadata.get("licence"),
        tensors=_fit(path, tensors, architecture),
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of any state dict, safetensors or torch, without executing code.

    Raises:
        CheckpointError: the file cannot be read, is unsafe, damaged or too large.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            raise CheckpointError(
                f"'{path}' has {n_bytes:,} bytes, more than the {MAX_BYTES:,} of any network of Visard"
            )
        return _read(path, n_bytes)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}): check the path") from error


def sha256_of(path: Path) -> str:
    """Digest a file, in hexadecimal, without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path, n_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; a `module.` prefix of data-parallel training is taken off."""
    with path.open("rb") as file:
        start = file.read(9)
    metadata: dict[str, str] = {}
    # A damaged file may raise anything out of either reader; none of it may pass as a crash of ours.
    try:
        if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= n_bytes:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                loaded: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        elif start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:  # torch stores without compression, so a bomb shows here
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > n_bytes:
                raise CheckpointError(f"'{path}' would unpack to {unpacked:,} bytes: not written by torch")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        elif start.startswith(b"\x80"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise CheckpointError(f"'{path}' is neither a safetensors file nor a torch checkpoint")
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"'{path}' is damaged or holds more than tensors, and was not executed ({reason}): "
            "save the state dict alone, best as safetensors"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CheckpointError(f"'{path}' does not hold a state dict: save `network.state_dict()` alone")
    # Strides of zero make a huge tensor of a few bytes; the widest element has eight.
    if sum(tensor.numel() for tensor in loaded.values()) > n_bytes:
        raise CheckpointError(f"'{path}' describes more numbers than it has bytes")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}, metadata


def _architecture(networks: tuple[str, ...], shapes: _Shapes, metadata: Mapping[str, str]) -> Architecture:
    is_persona = "persona" in networks and any(name.startswith("atlas_") for name in shapes)
    network = networks[-1] if is_persona else networks[0]
    found = metadata.get("network", network)
    if found != network:
        raise ValueError(f"its metadata call it '{found[:40]}'")
    if network == "resnet18":
        return ResNet18Architecture.from_shapes(shapes)
    size = metadata.get("size", str(IMAGE_SIZE))
    if not (size.isascii() and size.isdigit() and len(size) <= 4):
        raise ValueError(f"its metadata give the working size '{size[:40]}'")
    if is_persona:
        return PersonaArchitecture.from_shapes(shapes, size=int(size))
    architecture = Pix2PixHDArchitecture.from_shapes(shapes)
    if architecture.head != "image":
        raise ValueError("its trunk is a persona generator's, without traits and atlas")
    return architecture


def _on_meta(architecture: Architecture) -> Network:
    with torch.device("meta"):
        if isinstance(architecture, ResNet18Architecture):
            return ResNet18(architecture)
        if isinstance(architecture, PersonaArchitecture):
            return PersonaGenerator(architecture)
        return Pix2PixHDGenerator(architecture)


def _fit(path: Path, tensors: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Check the tensors against the architecture and convert them to its types."""
    expected = _on_meta(architecture).state_dict()
    if isinstance(architecture, Pix2PixHDArchitecture):
        tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in _STALE}
    missing = sorted(expected.keys() - tensors.keys())
    left_over = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted.shape)}"
        for name, wanted in expected.items()
        if name in tensors and tensors[name].shape != wanted.shape
    ]
    problems = (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
    told = [f"{what}: {_some(names)}" for what, names in problems if names]
    if told:
        raise CheckpointError(f"'{path}' is not {architecture}: {'; '.join(told)}")
    fitted: dict[str, Tensor] = {}
    for name, wanted in expected.items():
        if tensors[name].is_floating_point() != wanted.is_floating_point() or tensors[name].layout != torch.strided:
            raise CheckpointError(f"'{path}' holds '{name}' as {tensors[name].dtype}, not {wanted.dtype}")
        fitted[name] = tensors[name].detach().to(wanted.dtype).contiguous()
        if not torch.isfinite(fitted[name]).all():
            raise CheckpointError(f"'{path}' holds NaN or infinite numbers in '{name}': its training has diverged")
    return fitted


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(name[:80] for name in names[:MAX_NAMES]) + more
