"""Small StyleGAN2 generators and both published file formats, written as their makers write them.

Written from the formats' description alone: it shares no table with the readers.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visard_training.pairs.stylegan2 import StyleGAN2Architecture, StyleGAN2Generator

TINY = StyleGAN2Architecture(mapping=(12, 16, 16, 16), channels=(8, 6, 4))


def random_generator(architecture: StyleGAN2Architecture = TINY, seed: int = 0) -> StyleGAN2Generator:
    """Build a generator in which no tensor is zero, so that each of them counts."""
    torch.manual_seed(seed)
    generator = StyleGAN2Generator(architecture)
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith((".bias", ".noise_strength", ".w_avg")):
                tensor.add_(0.5 * torch.randn(tensor.shape))
    return generator.eval().requires_grad_(False)


def write_rosinality(path: Path, generator: StyleGAN2Generator, *, legacy: bool = False, **more: Any) -> None:
    """Write `{"g_ema": …, "latent_avg": …}` as convert_weight.py and train.py of stylegan2-pytorch do."""
    torch.save(
        {"g_ema": rosinality_tensors(generator), "latent_avg": generator.state_dict()["mapping.w_avg"], **more},
        path,
        _use_new_zipfile_serialization=not legacy,
    )


def rosinality_tensors(generator: StyleGAN2Generator) -> dict[str, Tensor]:
    ours, theirs = generator.state_dict(), {}
    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16  # they keep the factor of 4
    for i in range(generator.mapping.n_layers):
        for kind in ("weight", "bias"):
            theirs[f"style.{i + 1}.{kind}"] = ours[f"mapping.fc{i}.{kind}"]
    theirs["input.input"] = ours["synthesis.b4.const"][None]

    def convolution(ours_: str, theirs_: str, noise: int, *, up: bool) -> None:
        theirs[f"{theirs_}.conv.weight"] = ours[f"{ours_}.weight"][None]
        theirs[f"{theirs_}.conv.modulation.weight"] = ours[f"{ours_}.affine.weight"]
        theirs[f"{theirs_}.conv.modulation.bias"] = ours[f"{ours_}.affine.bias"]
        theirs[f"{theirs_}.noise.weight"] = ours[f"{ours_}.noise_strength"].view(1)
        theirs[f"{theirs_}.activate.bias"] = ours[f"{ours_}.bias"]
        theirs[f"noises.noise_{noise}"] = ours[f"{ours_}.noise_const"][None, None]
        if up:
            theirs[f"{theirs_}.conv.blur.kernel"] = kernel

    def to_rgb(ours_: str, theirs_: str, *, up: bool) -> None:
        theirs[f"{theirs_}.conv.weight"] = ours[f"{ours_}.weight"][None]
        theirs[f"{theirs_}.conv.modulation.weight"] = ours[f"{ours_}.affine.weight"]
        theirs[f"{theirs_}.conv.modulation.bias"] = ours[f"{ours_}.affine.bias"]
        theirs[f"{theirs_}.bias"] = ours[f"{ours_}.bias"].view(1, 3, 1, 1)
        if up:
            theirs[f"{theirs_}.upsample.kernel"] = kernel

    convolution("synthesis.b4.conv1", "conv1", 0, up=False)
    to_rgb("synthesis.b4.torgb", "to_rgb1", up=False)
    for k in range(len(generator.architecture.channels) - 1):
        block = f"synthesis.b{2 ** (k + 3)}"
        convolution(f"{block}.conv0", f"convs.{2 * k}", 2 * k + 1, up=True)
        convolution(f"{block}.conv1", f"convs.{2 * k + 1}", 2 * k + 2, up=False)
        to_rgb(f"{block}.torgb", f"to_rgbs.{k}", up=True)
    return theirs


class Persistent:
    """A network object as torch_utils.persistence pickles it: source code, class name and the state of its module."""

    def __init__(self, module: nn.Module, attributes: Mapping[str, Any], source: str) -> None:
        self.state, self.source = {**vars(module), **attributes}, source

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": "X", "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def persistent(
    tensors: Mapping[str, Tensor], clamp: float | None, source: str = "raise SystemExit", name: str = ""
) -> Persistent:
    """Build the tree of network objects that has these parameters and buffers."""
    module = nn.Module()
    parts: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        part, dot, rest = full.partition(".")
        if dot:
            parts.setdefault(part, {})[rest] = tensor
        elif part in ("w_avg", "noise_const", "resample_filter"):
            module.register_buffer(part, tensor)
        else:
            module.register_parameter(part, nn.Parameter(tensor, requires_grad=False))
    attributes: dict[str, Any] = {"weight_gain": np.float64(0.1), "_init_kwargs": _easy_dict()(size=4)}
    if name.startswith("fc"):
        attributes["bias_gain"] = 0.01
    if name.startswith("conv"):
        attributes["conv_clamp"] = clamp
    for part, some in parts.items():
        module._modules[part] = persistent(some, clamp, source, part)  # type: ignore[assignment]
    return Persistent(module, attributes, source)


@contextmanager
def nvidia_modules() -> Iterator[None]:
    """Make the names that stand in NVIDIA's pickles importable, which pickling asks for."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("this is for pickling alone")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})  # type: ignore[attr-defined]
    there = {name: ModuleType(name) for name in ("torch_utils", "dnnlib")}
    there |= {"torch_utils.persistence": persistence, "dnnlib.util": util}
    sys.modules.update(there)
    try:
        yield
    finally:
        for name in there:
            del sys.modules[name]


def _easy_dict() -> Any:
    return sys.modules["dnnlib.util"].EasyDict


def write_nvidia(
    path: Path,
    generator: StyleGAN2Generator,
    *,
    protocol: int = 3,
    clamp: float | None = None,
    source: str = "raise SystemExit",
    **changed: Tensor,
) -> None:
    """Write `{"G_ema": …, …}` as training_loop.py of stylegan2-ada-pytorch does."""
    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    tensors = dict(generator.state_dict())
    for resolution in generator.synthesis.resolutions:
        tensors[f"synthesis.b{resolution}.resample_filter"] = kernel
        tensors[f"synthesis.b{resolution}.conv1.resample_filter"] = kernel
        if resolution > 4:
            tensors[f"synthesis.b{resolution}.conv0.resample_filter"] = kernel
    with nvidia_modules():
        networks = {
            "training_set_kwargs": _easy_dict()(path="x.zip", max_size=None),
            "D": persistent({"b4.out.weight": torch.ones(1, 2)}, None),
            "G_ema": persistent(tensors | changed, clamp, source),
        }
        path.write_bytes(pickle.dumps(networks, protocol))
