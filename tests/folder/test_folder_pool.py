"""The pool of servers: turns, losses, refusals and returns, against a real Triton behind gateways that fail on request.

Where a server has to change in a way that no real one does quickly, a stand-in takes the client's place.
"""

from __future__ import annotations

import asyncio
import socket

import grpc
import numpy as np
import pytest

from visard.connection import Connection
from visard_errors import Overloaded, PermissionDenied, ServerRefused, ServerUnavailable
from visard_folder.photo import SwapRequest
from visard_folder.pool import Pool, agreed_models
from visard_testing.grpc_proxy import GrpcProxy

FACE = SwapRequest(aligned=np.zeros((1, 512, 512, 3), np.uint8), directions=("opposite",), personas=(7,))
_ENDS_S = 60  # what waits for ever is a failed test, not a test without an end
LOST, FULL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is tested is the order of things, not how long a user waits."""
    monkeypatch.setattr("visard_folder.pool._PAUSE_S", 0.02)
    monkeypatch.setattr("visard_folder.pool._WATCH_S", 0.02)


@pytest.fixture
def two(tiny_server):
    """Two ways to a real server, which fail on request."""
    with GrpcProxy(tiny_server.grpc_url) as first, GrpcProxy(tiny_server.grpc_url) as second:
        yield first, second


def swap(*proxies, times=1, **options):
    """Swap a face so many times, one after another; gives the answers."""
    connections = [Connection(url=proxy.url, max_attempts=1) for proxy in proxies]

    async def run():
        models = await agreed_models(connections)
        async with Pool(connections, "opposite", models, **options) as pool:
            return [await pool.swap(FACE) for _ in range(times)]

    return asyncio.run(asyncio.wait_for(run(), _ENDS_S))


def test_servers_are_asked_by_turns(two):
    answers = swap(*two, times=6)
    assert [len(proxy.personas()) for proxy in two] == [3, 3]
    assert all(np.array_equal(swapped.swapped, answers[0][0].swapped) for (swapped,) in answers)


def test_what_is_lost_is_asked_for_again(two):
    for proxy in two:
        proxy.lost += [LOST]
    notices = []
    swap(*two, times=4, notice=notices.append)
    assert sum(len(proxy.personas()) for proxy in two) == 6  # the lost ones were requested again
    assert min(len(proxy.personas()) for proxy in two) >= 2  # also of those that had lost one
    assert notices == []  # ready at the first look: nothing that a person should know


def test_the_same_persona_wherever_it_is_asked_for_again(two):
    for proxy in two:
        proxy.lost += [LOST] * 2
    swap(*two)
    assert {number for proxy in two for numbers in proxy.personas() for number in numbers} == {7}
    assert sum(len(proxy.personas()) for proxy in two) == 5


def test_a_full_server_is_not_away(two):
    for proxy in two:
        proxy.lost += [FULL] * 3
    notices = []
    swap(*two, notice=notices.append)
    assert notices == []
    # Nobody asked whether it is ready.
    assert not [method for proxy in two for method, _ in proxy.calls if method.endswith("ModelReady")]


def test_what_brings_servers_down_is_given_up_at_last(two):
    for proxy in two:
        proxy.lost += [LOST] * 100
    with pytest.raises(ServerUnavailable):
        swap(*two)
    n_one, n_two = (len(proxy.personas()) for proxy in two)
    assert n_one + n_two == 16
    assert min(n_one, n_two) > 0


def test_losses_count_across_refusals(two):
    """A face that kills a busy server must not do so for ever."""
    first, _ = two
    first.lost += [LOST, FULL] * 100
    with pytest.raises(ServerUnavailable):
        swap(first)
    assert len(first.personas()) == 15


@pytest.mark.parametrize(
    ("status", "error"),
    [(grpc.StatusCode.INVALID_ARGUMENT, ServerRefused), (grpc.StatusCode.UNAUTHENTICATED, PermissionDenied)],
)
def test_what_a_ready_server_refuses_is_an_error_at_once(two, status, error):
    first, _ = two
    first.lost += [status] * 100
    with pytest.raises(error):
        swap(first)
    assert len(first.personas()) == 1


def test_servers_that_stay_away_end_the_patience():
    notices = []

    async def run(*urls):
        connections = [Connection(url=url) for url in urls]
        async with Pool(connections, "opposite", {}, patience_s=3, notice=notices.append) as pool:
            await pool.swap(FACE)

    with socket.socket() as first, socket.socket() as second:  # bound, so that nobody else listens there
        urls = []
        for closed in (first, second):
            closed.bind(("127.0.0.1", 0))
            urls.append(f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ServerUnavailable, match="|".join(urls)):
            asyncio.run(asyncio.wait_for(run(*urls), _ENDS_S))
    assert [any(url in notice for notice in notices) for url in urls] == [True, True]
    assert len(notices) == 2  # told once each, however often they are looked for


# --- stand-ins ---


class Standin:
    """A client of a server that is ready, serves what `served` says, and swaps; `script` has what goes wrong first."""

    def __init__(self, script=()):
        self.script = list(script)
        self.ready = True
        self.served = "first"
        self.swaps = 0

    async def swap(self, aligned, direction, personas):
        self.swaps += 1
        if self.script:
            self.script.pop(0)(self)
        return ("a swapped face",)

    async def models(self):
        if self.ready is None:
            raise ServerUnavailable("gone")
        return {"anonymizer": self.ready}

    async def provenance(self):
        if self.served is None:
            raise ServerRefused("it has no such model")
        return {"generator_to_male": {"checkpoint_sha256": self.served, "precision": "fp32"}}

    async def close(self):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass


@pytest.fixture
def standins(monkeypatch):
    """Address → its client."""
    clients = {"one:1": Standin(), "two:2": Standin()}
    monkeypatch.setattr("visard_folder.pool.AsyncClient", lambda connection, workers: clients[connection.url])
    return clients


def lose(server):
    raise ServerUnavailable("gone")


def ask(*urls, work, **options):
    connections = [Connection(url=url) for url in urls]

    async def run():
        models = await agreed_models(connections)
        async with Pool(connections, "opposite", models, **options) as pool:
            return await work(pool)

    return asyncio.run(asyncio.wait_for(run(), _ENDS_S))


async def twice(pool):
    return [await pool.swap(FACE) for _ in range(2)]


def test_one_that_comes_back_with_other_models_ends_the_run_whoever_else_is_there(standins):
    def change(server):
        server.served = "second"
        lose(server)

    standins["one:1"].script.append(change)

    async def work(pool):
        while True:
            await pool.swap(FACE)
            await asyncio.sleep(0.01)

    for urls in (("one:1",), ("one:1", "two:2")):
        standins["one:1"].served = "first"
        standins["one:1"].script = [change]
        with pytest.raises(ServerRefused, match=r"one:1 came back with other models"):
            ask(*urls, work=work)


def test_a_server_that_does_not_say_any_more_what_it_serves_is_waited_for(standins):
    (server, _) = standins.values()
    looks = []

    def hide(server):
        server.served = None
        lose(server)

    def notice(text):
        looks.append(text)
        server.served = "first"

    server.script.append(hide)
    ask("one:1", work=twice, notice=notice)
    assert looks == ["a server is away, waiting for it: gone", "the server at one:1 is back"]


def test_a_server_at_its_start_is_waited_for(standins):
    (server, _) = standins.values()
    notices = []

    def starting(server):
        server.ready = False
        raise ServerRefused("it has no model 'anonymizer'")

    def notice(text):
        notices.append(text)
        server.ready = True

    server.script.append(starting)
    assert ask("one:1", work=twice, notice=notice) == [("a swapped face",)] * 2
    assert server.swaps == 3
    assert notices[-1] == "the server at one:1 is back"


def test_while_one_is_away_the_other_does_the_work(standins):
    away, _ = standins.values()

    def vanish(server):
        server.ready = None
        lose(server)

    away.script.append(vanish)

    async def work(pool):
        await twice(pool)
        swaps = away.swaps
        for _ in range(20):
            await pool.swap(FACE)
            await asyncio.sleep(0.005)
        assert away.swaps == swaps == 1
        away.ready = True
        while away.swaps == swaps:
            await pool.swap(FACE)
            await asyncio.sleep(0.005)

    ask("one:1", "two:2", work=work)


def test_watching_tells_of_servers_that_nothing_is_asked_of(standins):
    (server, _) = standins.values()
    notices = []

    async def work(pool):
        watching = asyncio.ensure_future(pool.watch())
        server.ready = None
        while not notices:
            await asyncio.sleep(0.01)
        server.ready = True
        while len(notices) < 2:
            await asyncio.sleep(0.01)
        watching.cancel()

    ask("one:1", "two:2", work=work, notice=notices.append)
    assert notices == ["a server is away, waiting for it: gone", "the server at one:1 is back"]


def test_a_request_can_be_given_up_while_it_waits(standins):
    def full(server):
        raise Overloaded("full")

    for script in ([full] * 1000, [lose] * 1000):
        standins["one:1"].script = script

        async def work(pool):
            asking = asyncio.ensure_future(pool.swap(FACE))
            await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        ask("one:1", work=work)


def test_servers_must_serve_the_same(standins):
    standins["two:2"].served = "second"
    with pytest.raises(ServerRefused, match="serve different models"):
        ask("one:1", "two:2", work=twice)
