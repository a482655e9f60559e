"""Descriptors are compared in a process of its own, which may be killed."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np

from visard import Options
from visard.judgement import identity_distance
from visard.pipeline import choose, find
from visard_web.identity import Identity


def test_distances_are_the_sdks_also_after_the_process_was_killed(astronaut):
    (aligned,) = choose(find(astronaut, Options()), ["opposite"]).aligned
    negative = np.ascontiguousarray(255 - aligned)

    async def distances(identity):
        return [await identity.measure(aligned, after, Options()) for after in (negative, aligned)]

    async def run():
        identity = Identity(Options())
        identity.start()
        try:
            before = await distances(identity)
            (process,) = identity._pool._processes.values()
            assert process.pid != os.getpid()
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return before, await distances(identity)
        finally:
            identity.close()

    before, after = asyncio.run(run())
    expected = identity_distance(aligned, negative, Options())
    assert expected > 0.1
    assert before == after == [expected, 0.0]
