"""A closed loop in one call, for benchmarks that vary something else than the load."""

from __future__ import annotations

import time

import numpy as np
from load_figures import Sample
from load_loops import closed_loop
from load_roads import FaceRoad
from numpy.typing import NDArray

from visard import Connection
from visard.wire import Direction


async def served(
    connection: Connection, image: NDArray[np.uint8], seconds: float, direction: Direction = "opposite"
) -> tuple[float, list[float]]:
    """Faces per second with `max_in_flight` callers, each sending its next face when the last one is back.

    Args:
        connection: to the server; nothing that it refuses is sent twice.
        image: (1, 512, 512, 3) or (512, 512, 3) uint8 RGB, an aligned face.
        seconds: how long new faces are sent.
        direction: as for the SDK.

    Returns:
        The rate, and every latency in seconds.

    Raises:
        RuntimeError: a face did not come back, so that the rate would mean nothing.
    """
    road = FaceRoad(name="", connection=connection, faces=image.reshape(1, *image.shape[-3:]), direction=direction)
    async with road.opened(patient=False) as send:
        await send(0)
        start = time.monotonic()
        samples: list[Sample] = await closed_loop(send, connection.max_in_flight, seconds, start)
        elapsed = time.monotonic() - start
    lost = {each.outcome for each in samples if not each.answered}
    if lost:
        raise RuntimeError(f"{connection.url} did not answer every face: {', '.join(sorted(lost))}")
    return len(samples) / elapsed, [each.latency_s for each in samples]
