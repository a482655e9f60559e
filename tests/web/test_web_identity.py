"""Descriptors are compared in a process of its own, which may be killed."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from visard import ApparentGender, FaceResult, Options, Result
from visard.pipeline import choose, find, identity_distance
from visard_web.identity import Identity


@pytest.fixture(scope="module")
def result(astronaut):
    prepared = choose(find(astronaut, Options()), ["opposite"])
    (aligned,) = prepared.aligned
    face = FaceResult(
        box=prepared.faces[0].box,
        quad=prepared.faces[0].quad,
        aligned=aligned,
        swapped=np.ascontiguousarray(255 - aligned),
        target="male",
        gender=None,
        swapped_gender=ApparentGender(label="male", confidence=0.9),
        similarity_percent=0.0,
        pixel_cosine=0.0,
        identity_distance=None,
    )
    same = replace(face, swapped=aligned)
    return Result(photo=None, faces=(face, same), faces_found=2, seconds={})


def test_distances_are_the_sdks_also_after_the_process_was_killed(result):
    async def run():
        identity = Identity(Options())
        identity.start()
        try:
            before = await identity.measure(result)
            (process,) = identity._pool._processes.values()
            assert process.pid != os.getpid()
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return before, await identity.measure(result)
        finally:
            identity.close()

    before, after = asyncio.run(run())
    face = result.faces[0]
    expected = identity_distance(face.aligned, face.swapped, Options())
    assert expected > 0.1
    for measured in (before, after):
        assert [face.identity_distance for face in measured.faces] == [expected, 0.0]
    assert result.faces[0].identity_distance is None
