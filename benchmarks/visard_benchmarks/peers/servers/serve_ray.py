"""Ray Serve with `serve.batch`, one replica per core, in a local Ray of its own that ends with this process.

The image travels as the raw body of a POST to Serve's HTTP proxy. Usage statistics are off, the dashboard too.
"""

import argparse
import os
import signal
import tempfile
import threading
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from graph import Graph, batch_of, cores
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

REQUIREMENTS = ("ray[serve]>=2.60,<2.64", "numpy", "onnxruntime")


@serve.deployment(num_replicas=cores(), max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Swapper:
    """One replica."""

    def __init__(self, models: str) -> None:
        self._graph = Graph(models)

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.002)
    async def swap(self, bodies: list[bytes]) -> list[bytes]:
        """Run the graph on what came in together."""
        return self._graph(batch_of(bodies))

    async def __call__(self, request: Request) -> Response:
        """One image in, one answer out."""
        return Response(await self.swap(await request.body()), media_type="application/octet-stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", required=True)
    arguments = parser.parse_args()
    end = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: end.set())
    with tempfile.TemporaryDirectory(prefix="ray-peer-") as folder:  # short: Ray puts sockets into it
        ray.init(
            include_dashboard=False,
            _temp_dir=folder,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent)}},
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
            serve.run(Swapper.bind(arguments.models), route_prefix="/swap")
            end.wait()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
