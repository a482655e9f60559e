"""Faces handed over in shared memory: the real Triton, and no trace of them anywhere."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from visard import AsyncClient, Client, Connection, DeadlineExceeded, PermissionDenied, ServerRefused
from visard import shared_memory as module
from visard.shared_memory import RegionPool
from visard.wire import MODELS, REGION_SIZE, build_request
from visard_server.triton import TritonServer
from visard_testing.tiny_models import expected_gender, expected_swap, expected_to_male, held, tiny_repository
from visard_testing.waiting import is_free, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that lets its callers share memory, and whose generators can be held."""
    repository = tiny_repository(tmp_path_factory.mktemp("shared") / "models", slow_s=0.02)
    with TritonServer(repository, shared_memory=True) as server:
        yield server


def faces(n):
    """Aligned images, all different, alternately dark (female to the tiny classifier) and bright (male)."""
    ramp = np.linspace(0, 60, 512 * 512 * 3).reshape(512, 512, 3)
    return np.stack([ramp + (20 + i if i % 2 else 150 + i) for i in range(n)]).astype(np.uint8)


def shared(server, **settings):
    return Connection(url=server.grpc_url, shared_memory=True, **settings)


def regions(server):
    """Names of the regions that a server has open."""
    request = urllib.request.Request(f"{server.http_url}/v2/systemsharedmemory/status")
    for name, key in server.admin_headers.items():
        request.add_header(name.removeprefix("triton-grpc-protocol-"), key)
    with urllib.request.urlopen(request) as answer:
        return [region["name"] for region in json.load(answer)]


def test_over_http_it_stays_closed(server):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{server.http_url}/v2/systemsharedmemory/status")


def left_in_the_file_system():
    return list(Path("/dev/shm").glob("visard-[0-9a-f]*"))


def test_faces_come_back_as_over_the_connection(server):
    images, before = faces(20), regions(server)
    with Client(shared(server, max_in_flight=3)) as client:
        swaps = client.swap(images)
        assert np.array_equal(np.stack([swap.swapped for swap in swaps]), expected_swap(images))
        genders = np.stack([swap.gender for swap in swaps])
        assert genders == pytest.approx(expected_gender(images), abs=1e-5)
        one_way = client.swap(images[:2], "to_male")
        assert [swap.gender for swap in one_way] == [None, None]
        assert np.array_equal(one_way[1].swapped, expected_to_male(images[1:2])[0])
        assert 1 <= len(regions(server)) - len(before) <= 3
        assert not left_in_the_file_system()  # nobody else can open them by name
    assert regions(server) == before
    assert np.array_equal(swaps[0].swapped, expected_swap(images[:1])[0])  # a copy, which outlives the client


def test_the_message_carries_no_pixels():
    image = faces(1)
    request = build_request("anonymizer", image, [7], region="visard-0")
    assert [len(raw) for raw in request.raw_input_contents] == [4]  # the persona
    assert request.ByteSize() < 1000
    ranges = sorted(
        (
            tensor.parameters["shared_memory_offset"].int64_param,
            tensor.parameters["shared_memory_byte_size"].int64_param,
        )
        for tensor in (request.inputs[0], *request.outputs)
    )
    assert sum(size for _, size in ranges) == 2 * image.nbytes + 2 * 8
    ends = [offset + size for offset, size in ranges]
    assert all(end <= offset for end, (offset, _) in zip(ends, ranges[1:], strict=False))  # no two overlap
    assert ends[-1] <= REGION_SIZE
    assert {tensor.name for tensor in request.outputs} == {tensor.name for tensor in MODELS["anonymizer"].outputs}


def test_a_server_that_forbids_it_says_how_to_allow_it(tiny_server):
    with Client(shared(tiny_server)) as client, pytest.raises(PermissionDenied, match="visard serve --shared-memory"):
        client.swap(faces(1))
    assert not left_in_the_file_system()


def test_another_machine_is_refused_before_anything_is_sent():
    with pytest.raises(ValueError, match="another machine"):
        Connection(url="203.0.113.7:8001", tls=True, shared_memory=True)


def test_no_memory_to_share_is_said(server, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_FOLDER", tmp_path / "missing")
    with Client(shared(server)) as client, pytest.raises(ServerRefused, match="--shm-size"):
        client.swap(faces(1))


def test_a_server_that_sees_other_memory_says_so(server, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_FOLDER", tmp_path)  # as between containers: the same name, another place
    with Client(shared(server)) as client, pytest.raises(ServerRefused, match="another container"):
        client.swap(faces(1))
    assert not list(tmp_path.iterdir())


def test_a_restarted_server_gets_new_memory(tmp_path):
    repository = tiny_repository(tmp_path / "models")
    image = faces(1)
    first = TritonServer(repository, shared_memory=True)
    first.start()
    with Client(shared(first)) as client:
        client.swap(image)
        first.stop()
        wait_until(lambda: is_free(first.grpc_url))
        port = int(first.grpc_url.rpartition(":")[2])
        with TritonServer(repository, grpc_port=port, shared_memory=True) as second:
            assert np.array_equal(client.swap(image)[0].swapped, expected_swap(image)[0])
            assert len(regions(second)) == 1


def test_memory_of_a_request_that_was_given_up_rests(server):
    images = faces(2)

    async def give_up_and_go_on():
        async with AsyncClient(shared(server, max_in_flight=1)) as client:
            await client.swap(images[1])  # the region is made
            with held(server.repository) as begun:
                given_up = asyncio.ensure_future(client.swap(images[0]))
                await asyncio.to_thread(wait_until, begun)
                given_up.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await given_up
            (region,) = (resting for _, resting in client._calls._regions._resting)
            (after,) = await client.swap(images[1])  # travels over the connection
            assert np.array_equal(region.memory[: 512 * 512 * 3].reshape(512, 512, 3), images[0])
            return after.swapped

    after = asyncio.run(give_up_and_go_on())
    assert np.array_equal(after, expected_swap(images[1:])[0])


def test_a_deadline_is_still_a_deadline(server):
    with (
        held(server.repository),
        Client(shared(server, deadline_s=0.3)) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.swap(faces(1))


def test_the_pool_lends_no_region_twice(monkeypatch):
    registered = []
    now = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))

    async def register(name):
        await asyncio.sleep(0)
        assert Path(f"/dev/shm/{name}").stat().st_mode & 0o777 == 0o600
        registered.append(name)

    async def lend():
        nonlocal now
        pool = RegionPool(2, rest_s=0.5, register=register)
        first, second, third = await asyncio.gather(pool.take(), pool.take(), pool.take())
        assert third is None
        assert first is not None
        assert second is not None
        assert first.name != second.name
        pool.give_back(first, answered=True)
        assert await pool.take() is first
        pool.give_back(second, answered=False)
        assert await pool.take() is None
        now += 0.5
        assert await pool.take() is second
        assert len(registered) == 2

        pool.give_back(first, answered=True)
        assert pool.forget() == [first.name]
        pool.give_back(second, answered=True)  # of the server before: not to be used again
        third = await pool.take()
        assert third is not None
        assert third.name not in (first.name, second.name)

    asyncio.run(lend())
    assert not left_in_the_file_system()
