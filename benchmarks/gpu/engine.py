"""One instance of a served model: requests of any few faces in, answers out, over fixed places on host and device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import checkout  # noqa: F401 -- makes the next lines' packages importable
from networks import Layout, Model, Norm, Swapper, fused, placed
from runners import Replay
from visard_export.graphs import AnonymizerGraph
from visard_export.networks.atlas import Direction


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a served model is; travels to the server as JSON.

    Attributes:
        model: whose networks.
        direction: of the routed shape; None is the fused one, which finds each face's direction itself.
        norm: of the generator.
        layout: of its weights.
        sizes: of batches that are prepared, ascending; between two, the rows that are left over are computed in vain.
        device: `cuda` or `cpu`.
        tiny: of `full`: a small network in its place.
    """

    model: Model
    direction: Direction | None
    norm: Norm
    layout: Layout
    sizes: tuple[int, ...]
    device: str
    tiny: bool

    def to_json(self) -> str:
        """Write them down."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "sizes": tuple(values["sizes"])})


class _Contiguous(nn.Module):
    """A network whose answers lie in memory as they are to be sent: pictures as rows of RGB."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, persona: Tensor) -> tuple[Tensor, ...]:
        """Ask the network."""
        return tuple(answer.contiguous() for answer in self.network(image, persona))


class Engine:
    """A model on its device, warm at every size; one caller at a time.

    Attributes:
        outputs: names of what it answers.
    """

    def __init__(self, settings: Settings) -> None:
        torch.backends.cudnn.benchmark = True
        on_gpu = settings.device == "cuda"
        if not on_gpu:
            torch.set_num_threads(1)  # the same everywhere, so that answers are the same to the last bit
        self._settings = settings
        self._stream: Any = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]
        network: Swapper | AnonymizerGraph
        if settings.direction is None:
            network = fused(settings.model, "fp16", settings.tiny)
        else:
            network = Swapper(settings.model, settings.direction, "fp16", settings.tiny)
        self.outputs = network.outputs
        graph = placed(_Contiguous(network), settings.device, settings.norm, settings.layout)
        self._replays: dict[int, Replay] = {}
        with self._on_stream():
            for size in settings.sizes:
                replay = self._replays[size] = Replay(graph, size, settings.device, "graph" if on_gpu else "eager")
                replay.run()
                replay.wait()
        largest = self._replays[settings.sizes[-1]]
        self._images = torch.empty_like(largest.image, device="cpu", pin_memory=on_gpu)
        self._personas = torch.empty_like(largest.persona, device="cpu", pin_memory=on_gpu)
        self._answers = [torch.empty(answer.shape, dtype=answer.dtype, pin_memory=on_gpu) for answer in largest.answer]

    def replay(self, size: int) -> Replay:
        """The network at one size, for measuring it without its copies."""
        return self._replays[size]

    def run(self, images: Sequence[Tensor], personas: Sequence[Tensor]) -> list[list[Tensor]]:
        """Answer some requests as one batch.

        Args:
            images: (n, 512, 512, 3) uint8 each, on the host; no more together than the largest size.
            personas: (n, 1) int32 each.

        Returns:
            For each request its part of every output, on the host; views that the next run overwrites.
        """
        counts = [len(part) for part in images]
        faces = sum(counts)
        size = next(size for size in self._settings.sizes if size >= faces)
        torch.cat(list(images), out=self._images[:faces])
        torch.cat(list(personas), out=self._personas[:faces])
        replay = self._replays[size]
        with self._on_stream():
            replay.image[:faces].copy_(self._images[:faces], non_blocking=True)
            replay.persona[:faces].copy_(self._personas[:faces], non_blocking=True)
            replay.run()
            for host, answer in zip(self._answers, replay.answer, strict=True):
                host[:faces].copy_(answer[:faces], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        parts = [torch.split(host[:faces], counts) for host in self._answers]
        return [list(part) for part in zip(*parts, strict=True)]

    def _on_stream(self) -> Any:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
