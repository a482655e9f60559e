"""Measures the GPU: its peaks, to compare a variant's speed with, and energy and memory while a variant runs.

On a machine without a GPU the same measurements run on the CPU, which only shows that they run.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

WARM_UP_RUNS = 3
BLOCK_S = 0.2  # runs between two waits for the device: enough of them that waiting costs nothing
COPY_BYTES = 256 * 2**20


class Runner(Protocol):
    """Something that maps images to images, over and over."""

    def run(self) -> None:
        """Start one batch."""

    def wait(self) -> None:
        """Return when everything that was started has ended."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a runner is: the median over blocks of runs, each waited for."""

    batches_per_second: float
    joules_per_batch: float | None = None


def measure(runner: Runner, seconds: float, gpu: Gpu | None = None) -> Rate:
    """Warm a runner up and run it for a while, with the GPU's energy where one is given.

    With no time at all it runs as rarely as possible, for dry runs.
    """
    for _ in range(WARM_UP_RUNS if seconds else 0):
        runner.run()
    runner.wait()
    start = time.perf_counter()
    runner.run()
    runner.wait()
    per_block = max(1, int(BLOCK_S / (time.perf_counter() - start))) if seconds else 1
    rates: list[float] = []
    with (gpu or Gpu(None)).energy() as joules:
        start = last = time.perf_counter()
        while last - start < seconds or not rates:
            for _ in range(per_block):
                runner.run()
            runner.wait()
            now = time.perf_counter()
            rates.append(per_block / (now - last))
            last = now
    return Rate(
        batches_per_second=statistics.median(rates),
        joules_per_batch=joules[0] / (per_block * len(rates)) if joules else None,
    )


def measure_peaks(device: str, seconds: float) -> Iterator[tuple[str, float]]:
    """Measure what the device reaches at best, each with its name as soon as it is known.

    Square matrix products in TFLOP/s, copies in GB/s: from and to pinned and pageable memory of the host, and within
    the device. Copies count each byte once; a copy within the device reads and writes it.
    """
    import torch
    from torch.utils.benchmark import Timer

    def rate(statement: str, **names: object) -> float:  # the timer waits for the device
        return 1 / float(Timer(statement, globals=names).blocked_autorange(min_run_time=seconds).median)

    size = 8192 if device == "cuda" else 256
    dtypes = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.half}
    for name, dtype in dtypes.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        yield f"{name}_tflops", 2 * size**3 * rate("mm(a, b, out=out)", mm=torch.mm, a=a, b=b, out=out) / 1e12
    n_bytes = COPY_BYTES if device == "cuda" else COPY_BYTES // 16
    # Written, because all pages that nobody has written are one page of zeros, which stays in the cache.
    here, there = (torch.ones(n_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.ones(n_bytes, dtype=torch.uint8, pin_memory=device == "cuda")
    pageable = torch.ones(n_bytes, dtype=torch.uint8)
    copies = (
        ("h2d", there, host),
        ("d2h", host, here),
        ("d2d", there, here),
        ("pageable_h2d", there, pageable),
        ("pageable_d2h", pageable, here),
    )
    for name, target, source in copies:
        speed = rate("target.copy_(source, non_blocking=True)", target=target, source=source)
        yield f"{name}_gb_per_s", n_bytes * speed / 1e9


def count_flop(architecture: Any) -> int:
    """Operations of one image, counted by torch over the network's convolutions: two per multiply and add."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from visard_export.networks.architectures import INPUT_CHANNELS
    from visard_export.networks.pix2pixhd import Pix2PixHDGenerator

    with torch.device("meta"), torch.inference_mode(False):
        network = Pix2PixHDGenerator(architecture)
        image = torch.empty(1, INPUT_CHANNELS[architecture.head], architecture.size, architecture.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return int(counter.get_total_flops())


def synchronize(device: str) -> None:
    """Wait until a CUDA device is idle; a CPU always is."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class Gpu:
    """NVML's view of one GPU, through `pynvml`; without it, or without a GPU, nothing is known.

    Args:
        uuid: the GPU's name in NVML (`GPU-…`); None where there is none.
    """

    def __init__(self, uuid: str | None) -> None:
        self._nvml: Any = None
        if uuid is not None:
            with suppress(Exception):  # not installed, or no driver
                nvml = importlib.import_module("pynvml")
                nvml.nvmlInit()
                self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                self._nvml = nvml

    def used_mib(self) -> float | None:
        """Memory in use on the whole device."""
        return None if self._nvml is None else float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) / 2**20

    @contextmanager
    def energy(self) -> Iterator[list[float]]:
        """Joules over the block, idle power included; the list stays empty where nobody counts them."""
        joules: list[float] = []
        before = self._counter()
        yield joules
        after = self._counter()
        if before is not None and after is not None:
            joules.append(after - before)

    def _counter(self) -> float | None:
        """Joules since the driver was loaded; GPUs since Volta count them."""
        if self._nvml is None:
            return None
        with suppress(self._nvml.NVMLError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        return None


def gpu_uuid(device: str) -> str | None:
    """NVML's name of the GPU that torch calls number 0."""
    if device != "cuda":
        return None
    import torch

    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"
