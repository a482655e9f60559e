"""A Triton Python model that stands before the ensemble and counts who is inside; for `load_settings.py` alone.

A request holds an instance of it until the whole ensemble has answered. So its bounded queue refuses at the entrance,
before anything was computed, and nothing behind it ever has to refuse.
"""

from __future__ import annotations

import asyncio
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hands each request on to the ensemble `inside` and waits for it."""

    def initialize(self, _args: dict[str, str]) -> None:
        """Keep one event loop."""
        self._loop = asyncio.new_event_loop()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request for itself."""
        return self._loop.run_until_complete(_all(requests))


async def _all(requests: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*map(_one, requests)))


async def _one(request: Any) -> Any:
    child = pb_utils.InferenceRequest(
        model_name="inside",
        requested_output_names=["swapped", "gender", "swapped_gender"],
        inputs=request.inputs(),
        timeout=request.timeout(),
    )
    response = await child.async_exec()
    if response.has_error():
        return pb_utils.InferenceResponse(error=response.error())
    return pb_utils.InferenceResponse(output_tensors=response.output_tensors())
