"""Has each face's apparent gender classified and sends it to the other gender's generator, as a Triton Python model.

It moves pixels and never decodes, converts or looks at them; which face goes where is `route`'s decision. A request
of one direction hands its tensors on as they are, which stay in shared memory; only a request with both directions
is split by rows, images and personas alike, and put together again.

It asks the classifier itself, instead of being given its answer by a step before, so that its bounded queue stands
before all work: what a full server refuses, it refuses within milliseconds and without having computed anything.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .route import route

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Calls of other models that are under way at once: two generators for each request of a full batch. Each of them waits
# on a thread of the loop, which by itself has cores + 4: on a small machine a batch would reach the generators in bits.
_CALLS = 32


class TritonPythonModel:
    """One instance of the router; busy until every request of a batch has been classified and generated."""

    def initialize(self, _args: dict[str, str]) -> None:
        """Keep one event loop: Triton would make one, with a new thread for the children's answers, for every batch."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_CALLS))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request for itself: what fails in one is that one's error alone."""
        return self._loop.run_until_complete(_answer_all(requests))

    def finalize(self) -> None:
        """Let the loop's threads end."""
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _answer_all(requests: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*map(_answer, requests)))


async def _answer(request: Any) -> Any:
    try:
        return pb_utils.InferenceResponse(output_tensors=await _swap(request))
    except _Refused as refused:
        return pb_utils.InferenceResponse(error=refused.error)
    except Exception as error:  # whatever it is must not reach the other requests of this batch
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"gender_router: {error}"))


async def _swap(request: Any) -> list[Any]:
    """Return `swapped` and `gender` of a request."""
    to_cpu = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)  # for numpy to read
    image = pb_utils.get_input_tensor_by_name(request, "image")
    persona = pb_utils.get_input_tensor_by_name(request, "persona")
    gender = await _ask(request, "gender_classifier", "gender", [image], preferred_memory=to_cpu)
    groups = route(gender.as_numpy())
    if len(groups) == 1:
        (generator,) = groups
        return [await _ask(request, generator, "swapped", [image, persona]), gender]

    pixels: NDArray[np.uint8] = image.as_numpy()
    numbers: NDArray[np.int32] = persona.as_numpy()
    parts = await asyncio.gather(
        *(
            _ask(
                request,
                generator,
                "swapped",
                [pb_utils.Tensor("image", pixels[rows]), pb_utils.Tensor("persona", numbers[rows])],
                preferred_memory=to_cpu,
            )
            for generator, rows in groups.items()
        )
    )
    swapped = np.empty_like(pixels)
    for rows, part in zip(groups.values(), parts, strict=True):
        swapped[rows] = part.as_numpy()
    return [pb_utils.Tensor("swapped", swapped), gender]


async def _ask(request: Any, model: str, output: str, inputs: list[Any], **options: Any) -> Any:
    """Ask a model in the caller's name: its queue counts the caller's timeout anew, as an ensemble step does."""
    # A request to another model cannot be cancelled once it is sent: check here whether the caller cancelled.
    if request.is_cancelled():
        raise _Refused(pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED))
    child = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=inputs,
        request_id=request.request_id(),
        timeout=request.timeout(),
        **options,
    )
    response = await child.async_exec()
    if response.has_error():
        raise _Refused(response.error())
    return pb_utils.get_output_tensor_by_name(response, output)


class _Refused(Exception):
    """Carries an error of Triton's own, with its code, to the caller."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = error
