"""BentoML, one worker process per core, with or without its adaptive batching.

The image travels as a raw body, both ways. BentoML batches between services: its documentation puts a service that
takes single requests before a batchable one (`--batching`), which costs a second hop between processes. Without it each
worker answers for itself.
"""

# No `from __future__ import annotations`: BentoML reads the types of its endpoints as objects.
import argparse
import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from graph import Graph, batch_of, cores

REQUIREMENTS = ("bentoml>=1.4", "numpy", "onnxruntime")

Raw = Annotated[bytes, ContentType("application/octet-stream")]
HERE = Path(__file__).resolve()


@bentoml.service(workers=cores(), traffic={"timeout": 120})
class Alone:
    """One request, one run of the graph."""

    def __init__(self) -> None:
        self._graph = Graph(os.environ["PEER_MODELS"])

    @bentoml.api(route="/swap")
    def swap(self, image: Raw, /) -> Raw:
        """One image in, one answer out."""
        return self._graph(batch_of([image]))[0]


@bentoml.service(workers=cores(), traffic={"timeout": 120})
class Batched:
    """Batches what the service before it sends."""

    def __init__(self) -> None:
        self._graph = Graph(os.environ["PEER_MODELS"])

    @bentoml.api(batchable=True, max_batch_size=4, max_latency_ms=1000)
    def swap_batch(self, images: np.ndarray) -> np.ndarray:
        """(N, 512, 512, 3) in, (N, bytes) out: arrays travel between services without being spelled out as JSON."""
        return np.stack([np.frombuffer(answer, np.uint8) for answer in self._graph(images)])


@bentoml.service(workers=1, traffic={"timeout": 120})
class Gathered:
    """Takes single images and hands them to `Batched`."""

    batched = bentoml.depends(Batched)

    @bentoml.api(route="/swap")
    async def swap(self, image: Raw, /) -> Raw:
        """One image in, one answer out."""
        (answer,) = await self.batched.to_async.swap_batch(batch_of([image]))
        return answer.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--batching", action="store_true")
    arguments = parser.parse_args()
    os.environ["PEER_MODELS"] = arguments.models
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.environ["BENTOML_CONFIG_OPTIONS"] = "api_server.logging.access.enabled=false"
    service = "Gathered" if arguments.batching else "Alone"
    command = [sys.executable, "-m", "bentoml", "serve", f"{HERE.stem}:{service}", "--working-dir", str(HERE.parent)]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(arguments.port)])


if __name__ == "__main__":
    main()
