"""One run of the load benchmark: which transports there are, and turns in which every load is put on each of them.

It decides the order of the loads; `loops` sends them, and `figures` computes the results.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visard import Connection
from visard_benchmarks.load.figures import (
    Figures,
    Timing,
    Turn,
    achieved,
    figures,
    goodput,
    ideal_latencies_s,
    percentile,
    stable,
)
from visard_benchmarks.load.loops import Load, Senders
from visard_benchmarks.load.report import CLOSED, OPEN, Key
from visard_benchmarks.load.server import Counters, read_counters
from visard_benchmarks.load.transports import FaceTransport, PhotoTransport, RestTransport, Transport
from visard_benchmarks.rates import CORES, bare_rate
from visard_errors import VisardError
from visard_server.embedded import SAMPLE_PHOTO
from visard_server.triton import TritonServer

GRPC = "grpc"  # the transport that headline figures and targets stand on
SHARED_MEMORY = "shared-memory"
TRANSPORTS = (GRPC, SHARED_MEMORY, "gateway", "sdk", "rest")

TARGET_LOAD, TARGET_OVERLOAD = 0.7, 1.5  # shares of the capacity that the targets speak of
DEADLINE = 10  # times the unloaded latency, where none is given: how long a caller waits
PATIENCE_S = 120.0  # deadline in closed loops, where nobody gives up


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and for how long."""

    transports: tuple[str, ...]
    callers: tuple[int, ...]
    loads: tuple[float, ...]
    in_flight: int
    closed: Timing
    opened: Timing
    repeats: int
    tries: int
    cold_starts: int
    seed: int
    deadline_s: float | None


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load."""

    grpc_url: str
    metrics_url: str | None
    embedded: TritonServer | None = None  # where it is our own


class Run:
    """Everything that was measured so far."""

    def __init__(self, plan: Plan, target: Target, sending: Senders, report_line: Callable[[str], None]) -> None:
        self.plan = plan
        self.target = target
        self.turns: dict[Key, list[Turn]] = {}
        self.counters: dict[Key, Counters] = {}
        self.bare: list[float] = []
        self.deadlines_s: dict[str, float] = {}
        self._sending = sending
        self._say = report_line

    def put(self, transport: Transport, kind: str, amount: float, load: Load, turn: int) -> Turn:
        """Put a load on a transport until it has settled, or has been tried enough, and keep what came of it."""
        timing = self.plan.opened if kind == OPEN else self.plan.closed
        key = transport.name, kind, amount
        before = self._read()
        for attempt in range(self.plan.tries):
            result = self._sending.run(transport, load, timing, self.plan.seed + 1000 * turn + attempt)
            if stable(result):
                break
        after = self._read()
        total = self.counters.setdefault(key, {})
        for name, value in after.items():
            total[name] = total.get(name, 0.0) + value - before.get(name, 0.0)
        self.turns.setdefault(key, []).append(result)
        return result

    def results(self) -> dict[Key, Figures]:
        """Sum up every load, by transport and kind."""
        order = {name: index for index, name in enumerate((CLOSED, OPEN))}
        keys = sorted(self.turns, key=lambda key: (self.plan.transports.index(key[0]), order[key[1]], key[2]))
        return {key: figures(self.turns[key], self.deadlines_s.get(key[0], PATIENCE_S)) for key in keys}

    def capacities(self, transport: str) -> list[float]:
        """Faces per second that a transport carried at most, in each turn."""
        loops = [turns for (of, kind, _), turns in self.turns.items() if of == transport and kind == CLOSED]
        return [max(achieved(turn) for turn in repeat) for repeat in zip(*loops, strict=True)]

    def over_bare(self, transport: str) -> list[float]:
        """Faces per second at `in_flight` over those of the bare loop, in each turn; empty where there is no loop."""
        served = self.turns.get((transport, CLOSED, float(self.plan.in_flight)), [])
        return [achieved(turn) / bare for turn, bare in zip(served, self.bare, strict=False)]

    def goodput_over_capacity(self, transport: str, share: float) -> list[float]:
        """Goodput in an open loop over the capacity, in each turn."""
        turns = self.turns.get((transport, OPEN, share), [])
        deadline_s = self.deadlines_s.get(transport, PATIENCE_S)
        return [goodput(turn, deadline_s) / most for turn, most in zip(turns, self.capacities(transport), strict=False)]

    def ideal_p99_s(self, transport: str, share: float) -> float:
        """99th percentile of an open loop's latency if this machine's cores lost nothing between two faces."""
        turns = self.turns.get((transport, OPEN, share), [])
        latencies = [
            ideal_latencies_s(turn, most, CORES) for turn, most in zip(turns, self.capacities(transport), strict=False)
        ]
        return percentile(list(chain.from_iterable(latencies)), 99)

    def one_turn(self, transports: list[Transport], face: NDArray[np.uint8], turn: int) -> None:
        """Measure everything once; `face` is (1, 512, 512, 3), for the bare loop."""
        if self.target.embedded is not None:
            repository, seconds = self.target.embedded.repository, self.plan.closed.measured_s / 2
            self.bare.append(bare_rate(repository, face, seconds))
            self._say(f"bare {self.bare[-1]:.1f}/s")
        for transport in transports if turn % 2 == 0 else transports[::-1]:  # nobody always comes after the same
            said = []
            for callers in self.plan.callers:
                result = self.put(transport, CLOSED, float(callers), Load(callers=callers), turn)
                said.append(f"{callers}: {achieved(result):.1f}/s")
            capacity = max(
                achieved(turns[-1])
                for (of, kind, _), turns in self.turns.items()
                if (of, kind) == (transport.name, CLOSED)
            )
            if transport.name not in self.deadlines_s:
                self.deadlines_s[transport.name] = self.plan.deadline_s or DEADLINE * self._unloaded_s(transport.name)
            deadline_s = self.deadlines_s[transport.name]
            for share in self._loads(transport.name):
                if capacity <= 0:
                    break
                load = Load(rate_per_s=share * capacity)
                result = self.put(_with_deadline(transport, deadline_s), OPEN, share, load, turn)
                said.append(f"{share:.0%}: {goodput(result, deadline_s):.1f}/s good")
            self._say(f"{transport.name}   " + "   ".join(said))

    def _unloaded_s(self, transport: str) -> float:
        """Median latency of the first turn's fewest callers, warm-up included: there may be few of them."""
        samples = self.turns[transport, CLOSED, float(self.plan.callers[0])][0].samples
        answered = [each.latency_s for each in samples if each.answered]
        if not answered:
            raise VisardError(f"{transport}: no face came back, {Counter(each.outcome for each in samples)}")
        return percentile(answered, 50)

    def _loads(self, transport: str) -> tuple[float, ...]:
        """Every share on the transport that headlines stand on, the targets' alone on the others."""
        if transport == GRPC:
            return self.plan.loads
        return tuple(share for share in self.plan.loads if share in (TARGET_LOAD, TARGET_OVERLOAD))

    def _read(self) -> Counters:
        return read_counters(self.target.metrics_url) if self.target.metrics_url else {}


def _with_deadline(transport: Transport, deadline_s: float) -> Transport:
    if isinstance(transport, RestTransport):
        return replace(transport, deadline_s=deadline_s)
    return replace(transport, connection=replace(transport.connection, deadline_s=deadline_s))


@contextmanager
def open_transports(
    names: tuple[str, ...], target: Target, faces: NDArray[np.uint8], say: Callable[[str], None]
) -> Iterator[list[Transport]]:
    """Set up every transport; one that cannot be had here is said and left out."""
    direct = Connection(url=target.grpc_url, deadline_s=PATIENCE_S)
    photo = SAMPLE_PHOTO.read_bytes()
    with ExitStack() as stack:
        transports: list[Transport] = []
        add = transports.append
        for name in names:
            try:
                if name == GRPC:
                    add(FaceTransport(name=name, connection=direct, faces=faces))
                elif name == SHARED_MEMORY:
                    add(FaceTransport(name=name, connection=replace(direct, shared_memory=True), faces=faces))
                elif name == "gateway":
                    if target.embedded is None:
                        raise RuntimeError("it stands in front of an embedded server only; name yours in --server")
                    gateway = stack.enter_context(_gateway(target.embedded))
                    add(FaceTransport(name=name, connection=gateway, faces=faces))
                elif name == "sdk":
                    add(PhotoTransport(name=name, connection=direct, photo=photo))
                elif name == "rest":
                    from visard_testing.web_server import web_process

                    # without a limit per caller, because one caller stands for many here
                    _, url = stack.enter_context(web_process("--server", target.grpc_url, "--rate", "none"))
                    add(RestTransport(name=name, url=url, photo=photo, deadline_s=PATIENCE_S))
            except (ImportError, OSError, RuntimeError) as error:
                say(f"{name} is left out: {error}")
        yield transports


@contextmanager
def _gateway(embedded: TritonServer) -> Iterator[Connection]:
    """Run nginx with the shipped configuration; its rate per client is raised, because one client stands for many."""
    from visard_testing.nginx_gateway import Gateway

    with (
        tempfile.TemporaryDirectory() as folder,
        Gateway(folder=Path(folder), tritons=[embedded], rate=10_000, burst=10_000) as gateway,
    ):
        key = gateway.new_key("benchmark")
        gateway.reload()
        yield Connection(
            url=gateway.grpc_url, root_certificates=gateway.certificate, api_key=key, deadline_s=PATIENCE_S
        )
