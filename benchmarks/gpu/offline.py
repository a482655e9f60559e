"""Faces per second of the bare generators, without any server: images lie on the device, and answers stay there."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from figures import Figures
from networks import Layout, Model, Norm, generator, placed, trunk_architecture
from runners import How, Replay
from visard_benchmarks.gpu.meters import Gpu, count_flop, gpu_uuid, measure, measure_peaks
from visard_export.graphs import build_graph

# In the order of their worth: what the time does not suffice for stands at the end.
MODELS: tuple[Model, ...] = ("full", "demo")
BATCHES = (16, 64, 1, 4)
DRY_BATCHES = (1,)
NORMS: tuple[Norm, ...] = ("layer_norm", "cast", "instance_norm")
LAYOUTS: tuple[Layout, ...] = ("nhwc", "nchw")

CASE_S = 0.7  # of measuring
NEEDED_S = 4.0  # for a case with its warm-up and the search for kernels
COMPILING_S = 20.0  # for a case with its compilation


def peaks(figures: Figures, device: str, dry: bool) -> None:
    """What the device is, and what it reaches at best, one line each."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    figures.add(device=name, torch=torch.__version__, cuda=torch.version.cuda, cudnn=cudnn)
    for name, value in measure_peaks(device, 0.05 if dry else 0.7):
        figures.add(peak=name, value=value)


def peak_tflops(figures: Figures) -> float | None:
    """The matrix product's peak in half, where it was measured."""
    found = [line["value"] for line in figures.lines("peaks") if line.get("peak") == "fp16_tflops"]
    return float(found[0]) if found else None


def offline(figures: Figures, device: str, dry: bool) -> None:
    """Eager and as CUDA graphs: every batch, norm and layout."""
    built = _Built(device, dry)
    for batch, model, norm, layout in _cases(figures, DRY_BATCHES if dry else BATCHES):
        for how in ("graph", "eager"):
            _case(figures, built, batch=batch, model=model, norm=norm, layout=layout, how=how, dry=dry)


def _cases(figures: Figures, batches: tuple[int, ...]) -> Iterator[tuple[int, Model, Norm, Layout]]:
    """Everything at the first batch; the others with what was fastest there; then the rest."""
    first, *others = batches
    yield from itertools.product((first,), MODELS, NORMS, LAYOUTS)
    best = {model: fastest(figures, model) for model in MODELS}
    yield from ((batch, model, *best[model]) for batch, model in itertools.product(others, MODELS))
    for batch, model, norm, layout in itertools.product(others, MODELS, NORMS, LAYOUTS):
        if (norm, layout) != best[model]:
            yield batch, model, norm, layout


def compiled(figures: Figures, device: str, dry: bool) -> None:
    """Through torch.compile, in the layout and with the norm that were fastest without it."""
    built = _Built(device, dry)
    for batch, model in itertools.product(DRY_BATCHES if dry else BATCHES, MODELS):
        norm, layout = fastest(figures, model)
        _case(figures, built, batch=batch, model=model, norm=norm, layout=layout, how="compiled", dry=dry)


def fastest(figures: Figures, model: Model) -> tuple[Norm, Layout]:
    """Which norm and layout gave the most faces per second of any batch and way; the exported ones if none did.

    Torch's own instance norm is measured to compare with and not exported, so it is not chosen.
    """
    found = [
        line
        for line in figures.lines("offline")
        if line.get("model") == model and "faces_per_second" in line and line["norm"] != "instance_norm"
    ]
    best = max(found, key=lambda line: float(line["faces_per_second"]), default=None)
    return (best["norm"], best["layout"]) if best else ("layer_norm", "nchw")


class _Built:
    """Networks on the device, each built once."""

    def __init__(self, device: str, dry: bool) -> None:
        self._device, self._dry = device, dry
        self._networks = {model: generator(model, "to_male", tiny=dry) for model in MODELS}
        self.flop = {model: count_flop(trunk_architecture(network)) for model, network in self._networks.items()}
        self._graphs: dict[tuple[Model, Norm, Layout], nn.Module] = {}
        self.gpu = Gpu(gpu_uuid(device))

    def graph(self, model: Model, norm: Norm, layout: Layout) -> nn.Module:
        """The generator in half, on the device."""
        key = model, norm, layout
        if key not in self._graphs:
            graph = build_graph(self._networks[model], "fp16", "to_male")
            self._graphs[key] = placed(graph, self._device, norm, layout)
        return self._graphs[key]


def _case(
    figures: Figures,
    built: _Built,
    *,
    batch: int,
    model: Model,
    norm: Norm,
    layout: Layout,
    how: How,
    dry: bool,
) -> None:
    """Measure one case and write its line, or why there is none."""
    which: dict[str, Any] = {"model": model, "batch": batch, "norm": norm, "layout": layout, "how": how}
    which["precision"] = "fp16"
    if not figures.has_time(COMPILING_S if how == "compiled" else NEEDED_S, **which):
        return
    device = "cpu" if dry else "cuda"
    try:
        _reset_memory(device)
        runner = Replay(built.graph(model, norm, layout), batch, device, how, "eager" if dry else "inductor")
        rate = measure(runner, 0.0 if dry else CASE_S, built.gpu)
    except Exception as error:  # every library has its own; the reason goes into the file
        figures.failed(error, **which)
    else:
        speed, peak = rate.batches_per_second * batch, peak_tflops(figures)
        figures.add(
            **which,
            faces_per_second=speed,
            ms_per_batch=1000 / rate.batches_per_second,
            share_of_roofline=None if peak is None else speed * built.flop[model] / (peak * 1e12),
            gflop_per_face=built.flop[model] / 1e9,
            joules_per_face=None if rate.joules_per_batch is None else rate.joules_per_batch / batch,
            peak_memory_mib=_peak_memory_mib(device),
            note="torch.compile only traced, for want of a GPU" if how == "compiled" and dry else "",
        )
    finally:
        if how == "compiled":
            torch._dynamo.reset()


def _reset_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_memory_mib(device: str) -> float | None:
    """The most that tensors took on the device, weights of the networks built so far included."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


PARTS: dict[str, Callable[[Figures, str, bool], None]] = {"peaks": peaks, "offline": offline, "compiled": compiled}
