"""Many callers at once: everybody gets an answer, and afterwards nothing is held."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx

from visard_testing.web_server import web_server

CALLERS = 200


def test_everybody_is_answered(tiny_server, astronaut):
    photo = astronaut.read_bytes()

    async def call(http, number):
        if number % 3 == 0:
            answer = await http.post("/page/photos", files={"photo": photo}, data={"consent": "yes"})
        else:
            answer = await http.post("/v1/anonymize", content=photo, headers={"Content-Type": "image/jpeg"})
        if answer.status_code in (429, 503):
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"] in ("Overloaded", "TooManyRequests")
        return answer.status_code

    async def run(url):
        limits = httpx.Limits(max_connections=CALLERS)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            statuses = Counter(await asyncio.gather(*(call(http, number) for number in range(CALLERS))))
            alive = (await http.get("/readyz")).status_code
            return statuses, alive, (await http.get("/metrics")).text

    with web_server(tiny_server.grpc_url, waiting=10, rate="150/hour") as url:
        statuses, alive, metrics = asyncio.run(run(url))
    assert set(statuses) == {200, 201, 429, 503}, statuses
    assert statuses[429] == CALLERS - 150
    assert statuses[200] + statuses[201] >= 16  # places: 6 in work, 10 waiting
    assert alive == 200
    for line in ("visard_queue_depth 0.0", "visard_in_work 0.0"):
        assert line in metrics.splitlines()
