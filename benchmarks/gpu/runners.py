"""A network that runs one batch over and over, started from Python, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visard_benchmarks.gpu.meters import synchronize

How = Literal["eager", "graph", "compiled"]
WARM_UP_RUNS = 3  # before a capture: kernels are searched and memory is taken in them


class Replay:
    """A network on one batch size, its inputs and answers at fixed places on the device.

    Args:
        module: maps images and personas to a tensor or to some.
        batch: how many faces.
        device: where the module is.
        how: `graph` replays one CUDA graph, `compiled` runs what torch.compile makes.
        backend: of torch.compile.

    Attributes:
        image: (batch, 512, 512, 3) uint8, to be filled; noise at first.
        persona: (batch, 1) int32, likewise.
        answer: of the last run; the same tensors after every run of a graph.
    """

    answer: Any

    def __init__(self, module: nn.Module, batch: int, device: str, how: How, backend: str = "inductor") -> None:
        # Noise, because a GPU does zeros with less power, and so faster, than pictures.
        self.image = torch.randint(0, 256, (batch, 512, 512, 3), dtype=torch.uint8, device=device)
        self.persona = torch.zeros((batch, 1), dtype=torch.int32, device=device)
        self._device = device
        call = torch.compile(module, dynamic=False, backend=backend) if how == "compiled" else module
        self._call: Callable[[Tensor, Tensor], Any] = call
        self._graph: Any = None
        if how == "graph":
            if device != "cuda":
                raise RuntimeError("CUDA graphs need a GPU")
            self._capture()

    def _capture(self) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._call(self.image, self.persona)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self.answer = self._call(self.image, self.persona)

    def run(self) -> None:
        """Start one batch."""
        if self._graph is not None:
            self._graph.replay()
        else:
            with torch.no_grad():
                self.answer = self._call(self.image, self.persona)

    def wait(self) -> None:
        """Return when all batches have ended."""
        synchronize(self._device)
