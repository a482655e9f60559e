"""What the gateway costs: faces per second and latency straight to Triton, through TLS, and with keys and limits too.

Three routes to the same server take turns within one run, so that a slow minute of the machine slows all: directly to
Triton; through nginx with the shipped configuration less keys and limits; and through the shipped configuration. The
models do next to nothing, so that the wire is what is measured; nginx, Triton and the load share the machine's cores.
With real models the same milliseconds weigh less.

Needs nginx with its njs module and `envsubst`. Prints medians and ratios; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visard import Connection
from visard_benchmarks.environment import environment
from visard_benchmarks.load.loops import served
from visard_server.triton import TritonServer
from visard_testing.nginx_gateway import Gateway
from visard_testing.tiny_models import tiny_repository

MODELS = {"anonymizer_to_male", "generator_to_male", "gender_classifier"}
ORDERS = tuple(itertools.permutations(("direct", "TLS", "TLS, key and limits")))  # nobody always comes after the same
IMAGE = np.linspace(0, 90, 512 * 512 * 3).reshape(1, 512, 512, 3).astype(np.uint8)


class OpenGateway(Gateway):
    """The shipped gateway without keys and limits: encryption and balancing alone."""

    def _render(self) -> None:
        super()._render()
        rendered = self.folder / "nginx.conf"
        text = rendered.read_text()
        text = re.sub(r"^ *limit_(req|conn) .*\n", "", text, flags=re.MULTILINE)
        rendered.write_text(re.sub(r'if \(\$client = ""\) \{\s*return 401;\s*\}', "", text))


@dataclass
class Route:
    """One way to the models, and what was measured on it in each repeat."""

    connection: Connection
    gateway: Gateway | None = None
    cpu_s: float = 0.0
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (default 5)")
    parser.add_argument("--repeats", type=int, default=6, help="how often all take turns (default 6)")
    parser.add_argument("--in-flight", type=int, default=4, help="faces under way at once (default 4)")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        triton = stack.enter_context(TritonServer(tiny_repository(folder / "models", only=MODELS)))
        gateways = {}
        for name, kind in (("TLS", OpenGateway), ("TLS, key and limits", Gateway)):
            place = Path(tempfile.mkdtemp(dir=folder))
            gateways[name] = stack.enter_context(kind(folder=place, tritons=[triton], rate=10_000, burst=10_000))
        key = gateways["TLS, key and limits"].new_key("benchmark")
        gateways["TLS, key and limits"].reload()
        routes = {"direct": Route(Connection(url=triton.grpc_url, max_in_flight=arguments.in_flight))}
        for name, gateway in gateways.items():
            connection = Connection(
                url=gateway.grpc_url,
                root_certificates=gateway.certificate,
                api_key=key,
                max_in_flight=arguments.in_flight,
            )
            routes[name] = Route(connection, gateway)
        for repeat in range(arguments.repeats):
            for name in ORDERS[repeat % len(ORDERS)]:
                route = routes[name]
                used_s = route.gateway.cpu_seconds() if route.gateway else 0.0
                rate, latencies = asyncio.run(served(route.connection, IMAGE, arguments.seconds, "to_male"))
                route.rates.append(rate)
                route.latencies += latencies
                route.cpu_s += (route.gateway.cpu_seconds() if route.gateway else 0.0) - used_s
            print(f"repeat {repeat + 1}: " + "   ".join(f"{name} {r.rates[-1]:.1f}/s" for name, r in routes.items()))

    figures: dict[str, dict[str, float]] = {}
    for name, route in routes.items():
        p50, p99 = np.percentile(route.latencies, [50, 99]) * 1000
        share = statistics.median(a / b for a, b in zip(route.rates, routes["direct"].rates, strict=True))
        figures[name] = {
            "faces_per_second": round(statistics.median(route.rates), 1),
            "over_direct": round(share, 4),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "gateway_cpu_ms_per_face": round(route.cpu_s / len(route.latencies) * 1000, 2),
        }
        print(
            f"{name:20} {figures[name]['faces_per_second']:7.1f} faces/s {share:7.1%} of direct   "
            f"latency p50 {p50:.1f} ms, p99 {p99:.1f} ms   "
            f"nginx {figures[name]['gateway_cpu_ms_per_face']:.2f} ms of CPU per face"
        )
    print(json.dumps({"routes": figures, "environment": {**environment(), "in_flight": arguments.in_flight}}))


if __name__ == "__main__":
    main()
