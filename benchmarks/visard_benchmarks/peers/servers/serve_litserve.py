"""LitServe with its own batching, one worker process per core.

The image travels as a raw body, which LitServe passes on to FastAPI: leaner than the JSON of its examples. `fast_queue`
(ZeroMQ instead of a multiprocessing queue) is what its documentation recommends under load.
"""

# No `from __future__ import annotations`: LitServe reads the types of `decode_request` as objects.
from typing import Annotated

import litserve
from fastapi import Body, Response
from graph import Graph, arguments, batch_of, cores

REQUIREMENTS = ("litserve>=0.2.10", "numpy", "onnxruntime")


class Api(litserve.LitAPI):
    """Batches, runs the graph, and hands each caller its own answer."""

    def __init__(self, models, **batching):
        super().__init__(**batching)
        self.models = models

    def setup(self, device):
        """Load, once per worker."""
        self.graph = Graph(self.models)

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]):
        """Keep the body as it came."""
        return request

    def batch(self, inputs):
        """Put bodies together."""
        return batch_of(inputs)

    def predict(self, images):
        """Run the graph."""
        return self.graph(images)

    def unbatch(self, output):
        """Leave the answers as the graph gave them, one per image."""
        return output

    def encode_response(self, output) -> Response:
        """Answer with the raw bytes."""
        return Response(output, media_type="application/octet-stream")


def main():
    given = arguments(__doc__)
    api = Api(given.models, max_batch_size=4, batch_timeout=0.002, api_path="/swap")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=cores(), fast_queue=True, timeout=120, disable_openapi_url=True
    )
    server.run(host="127.0.0.1", port=given.port, log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
