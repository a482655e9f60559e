"""StyleGAN2 weights files in: both published families become one checked generator, and none of their code is run.

NVIDIA's `.pkl` (stylegan2-ada-pytorch) is a pickle of whole network objects with their source code inside. Here it is
read by an unpickler that knows a handful of names: network objects become plain records of their tensors, their source
stays text, every other name is refused. rosinality's `.pt` (stylegan2-pytorch) holds a state dict, which
`torch.load(weights_only=True)` reads. A file is judged by its content, not by its name.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from visard_errors import CheckpointError
from visard_training.pairs.stylegan2 import BLUR, MAPPING_LEARNING_RATE, StyleGAN2Architecture, StyleGAN2Generator

MAX_BYTES = 2 * 1024**3  # the published 1024² networks have 127 to 380 MB
MAX_NAMES = 12  # how many names an error message lists

_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before 1.6


def load_stylegan2(path: Path) -> StyleGAN2Generator:
    """Load the averaged generator (`G_ema`, `g_ema`) of either family.

    Returns:
        The generator, in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: the file is unsafe, damaged, too large or another network.
    """
    try:
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_TORCH))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}): check the path") from error
    if n_bytes > MAX_BYTES:
        raise CheckpointError(f"'{path}' has {n_bytes:,} bytes, more than the {MAX_BYTES:,} of any StyleGAN2")
    # A damaged file may raise anything out of either reader; none of it may pass as a crash of ours.
    try:
        if start.startswith(b"PK\x03\x04") or start == _LEGACY_TORCH:
            tensors, clamp = _read_rosinality(path, n_bytes), None
        elif start.startswith(b"\x80"):
            tensors, clamp = _read_nvidia(path)
        else:
            raise ValueError("it is neither a pickle nor a torch checkpoint")
        if sum(tensor.numel() for tensor in tensors.values()) > n_bytes:  # strides of zero: much of a few bytes
            raise ValueError("it describes more numbers than it has bytes")
        _check_kernels(tensors)
        return _fit(tensors, clamp)
    except Exception as error:
        reason = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
        raise CheckpointError(
            f"'{path}' is not a StyleGAN2 generator that Visard can read, and nothing in it was executed ({reason}): "
            "give a .pkl of NVIDIA's stylegan2-ada-pytorch or a .pt of rosinality's stylegan2-pytorch"
        ) from error


@dataclass(frozen=True)
class _Module:
    """What is kept of a pickled network object: its attributes, of which only plain values are ever used."""

    state: Mapping[str, Any]

    def walk(self) -> Iterator[tuple[str, _Module]]:
        """Go through this module and all its parts under torch's usual names."""
        waiting, seen = [("", self)], {id(self)}
        while waiting:
            name, module = waiting.pop()
            yield name, module
            for part, child in module.state["_modules"].items():
                if id(child) in seen:  # a few modules that hold each other would be walked for ever
                    raise ValueError(f"its module '{name}{part}' stands in two places")
                seen.add(id(child))
                waiting.append((f"{name}{part}.", child))


class _NvidiaUnpickler(pickle.Unpickler):  # noqa: S301 -- it is what makes it safe
    """Rebuilds tensors and records, and nothing else.

    Every callable that the pickle can reach is a built-in container or a bound method of this object, on which a
    pickle cannot set attributes: it could otherwise change functions of torch for the whole process.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): self._module,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.storage", "_load_from_bytes"): self._storage,
            ("collections", "OrderedDict"): OrderedDict,
            ("dnnlib.util", "EasyDict"): dict,
            ("builtins", "set"): set,
            ("numpy", "dtype"): self._dtype,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy._core.multiarray", "scalar"): self._scalar,  # the name since numpy 2
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "dnnlib.tflib.network":
            raise pickle.UnpicklingError("it is a TensorFlow network: convert it with NVIDIA's legacy.py first")
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for '{module[:80]}.{name[:80]}', which no generator needs")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")

    def _module(self, meta: Mapping[str, Any]) -> _Module:
        return _Module(dict(meta["state"]))  # the network's source in meta["module_src"] is not looked at

    def _storage(self, data: bytes) -> Tensor:
        if not data.startswith(_LEGACY_TORCH):
            raise pickle.UnpicklingError("a tensor is not in the form that torch pickles")
        storage = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)

    def _tensor(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        return storage.as_strided(size, stride, offset)  # raises where the storage is too short

    def _parameter(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor

    def _dtype(self, *_: Any) -> _Inert:
        return _Inert()

    def _scalar(self, *_: Any) -> None:
        return None  # gains, which follow from the shapes


class _Inert:
    """Stands for a numpy dtype, whose state it forgets."""

    def __setstate__(self, state: Any) -> None:
        pass


def _read_nvidia(path: Path) -> tuple[dict[str, Tensor], float | None]:
    with path.open("rb") as file:
        networks = _NvidiaUnpickler(file).load()
    generator = networks.get("G_ema") if isinstance(networks, Mapping) else None
    if not isinstance(generator, _Module):
        raise ValueError("it holds no network 'G_ema'")
    modules = dict(generator.walk())
    if missing := {"mapping.fc0.", "synthesis.b4.conv1."} - modules.keys():
        raise ValueError(f"its 'G_ema' has no {', '.join(sorted(missing))}")
    learning_rate = modules["mapping.fc0."].state.get("bias_gain")
    if learning_rate != MAPPING_LEARNING_RATE:
        raise ValueError(f"its mapping network was trained at the rate {learning_rate}, not {MAPPING_LEARNING_RATE}")
    clamp = modules["synthesis.b4.conv1."].state.get("conv_clamp")
    if not isinstance(clamp, (int, float, type(None))):
        raise ValueError(f"its outputs are clamped by a {type(clamp).__name__}")
    named = {
        prefix + name: tensor
        for prefix, module in modules.items()
        for kind in ("_parameters", "_buffers")
        for name, tensor in module.state[kind].items()
    }
    return {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}, clamp


def _read_rosinality(path: Path, n_bytes: int) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch stores without compression, so a bomb shows here
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > n_bytes:
            raise ValueError(f"it would unpack to {unpacked:,} bytes")
    with torch.serialization.safe_globals([argparse.Namespace]):  # training's arguments: inert, and not looked at
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping) or not {"g_ema", "latent_avg"} <= loaded.keys():
        raise ValueError("it holds no 'g_ema' and 'latent_avg'")
    tensors = {_nvidia_name(name): tensor for name, tensor in loaded["g_ema"].items()}
    tensors["mapping.w_avg"] = loaded["latent_avg"]
    return {name: _without_ones(name, tensor) for name, tensor in tensors.items()}


_STYLED = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "conv.blur.kernel": "resample_filter",
    "noise.weight": "noise_strength",
    "activate.bias": "bias",
    "bias": "bias",
    "upsample.kernel": "resample_filter",
}


def _nvidia_name(name: str) -> str:
    """Translate rosinality's name of a tensor; the kernels are stored alike, up-sampling ones included.

    Layers are counted from the smallest: `convs.0` and `convs.1` are the two convolutions at 8², `to_rgbs.0` is the
    RGB layer there, and `noises.noise_1` belongs to `convs.0`.
    """
    part, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if name == "input.input":
        return "synthesis.b4.const"
    if part == "style":
        return f"mapping.fc{int(number) - 1}.{inner}"
    if part == "conv1" and rest in _STYLED:
        return f"synthesis.b4.conv1.{_STYLED[rest]}"
    if part == "to_rgb1" and rest in _STYLED:
        return f"synthesis.b4.torgb.{_STYLED[rest]}"
    if part == "convs" and inner in _STYLED:
        return f"{_convolution(int(number))}.{_STYLED[inner]}"
    if part == "to_rgbs" and inner in _STYLED:
        return f"synthesis.b{8 << int(number)}.torgb.{_STYLED[inner]}"
    if match := re.fullmatch(r"noises\.noise_(\d+)", name):
        layer = int(match[1])
        return f"{_convolution(layer - 1) if layer else 'synthesis.b4.conv1'}.noise_const"
    return name  # will be left over


def _convolution(number: int) -> str:
    return f"synthesis.b{8 << number // 2}.conv{number % 2}"


def _without_ones(name: str, tensor: Tensor) -> Tensor:
    """Take off the dimensions of one that only rosinality keeps, such as the first of (1, O, I, 3, 3)."""
    if name.endswith((".bias", ".w_avg")):
        return tensor.flatten()
    n_dimensions = {"const": 3, "noise_const": 2, "noise_strength": 0}.get(name.rpartition(".")[2], 4)
    while tensor.ndim > n_dimensions and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def _check_kernels(tensors: dict[str, Tensor]) -> None:
    """Take the blur kernels out, after a look whether they are the published one; their scale is the layer's matter."""
    wanted = torch.outer(torch.tensor(BLUR), torch.tensor(BLUR))
    for name in [name for name in tensors if name.endswith(".resample_filter")]:
        kernel = tensors.pop(name).float()
        if kernel.shape != (4, 4) or not torch.allclose(kernel / kernel.sum(), wanted / wanted.sum(), atol=1e-4):
            raise ValueError(f"'{name}' is not the kernel {BLUR}")


def _fit(tensors: Mapping[str, Tensor], clamp: float | None) -> StyleGAN2Generator:
    """Check the tensors against the architecture that their shapes tell, and build the generator with them."""
    architecture = StyleGAN2Architecture.from_shapes({n: tuple(t.shape) for n, t in tensors.items()}, clamp=clamp)
    with torch.device("meta"):
        generator = StyleGAN2Generator(architecture)
    expected = generator.state_dict()
    problems = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - expected.keys()),
        "of another shape": sorted(n for n in expected.keys() & tensors if expected[n].shape != tensors[n].shape),
        "no finite numbers": sorted(n for n, t in tensors.items() if not torch.isfinite(t).all()),
    }
    told = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        raise ValueError("; ".join(told))
    generator.load_state_dict({name: tensor.float().contiguous() for name, tensor in tensors.items()}, assign=True)
    return generator.eval().requires_grad_(False)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(name[:80] for name in names[:MAX_NAMES]) + more
