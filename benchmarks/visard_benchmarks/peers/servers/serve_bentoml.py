"""BentoML, one worker process per core, each of which answers for itself.

The image travels as a raw body, both ways. BentoML's adaptive batching is left out: it takes a second hop between
processes, was slower under one caller, and answered more of them with errors.
"""

# No `from __future__ import annotations`: BentoML reads the types of its endpoints as objects.
import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from graph import Graph, arguments, batch_of, cores

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


def main() -> None:
    given = arguments(__doc__)
    os.environ["PEER_MODELS"] = given.models
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.environ["BENTOML_CONFIG_OPTIONS"] = "api_server.logging.access.enabled=false"
    command = [sys.executable, "-m", "bentoml", "serve", f"{HERE.stem}:Alone", "--working-dir", str(HERE.parent)]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(given.port)])


if __name__ == "__main__":
    main()
