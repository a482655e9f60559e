"""The models in this process, instead of a server: the same graphs, run by onnxruntime, answered as a server answers.

A server batches, bounds its queues, is watched, and survives its callers. This is for machines that have none: laptops,
other systems than Linux, serverless functions, a handful of photos.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visard.result import ApparentGender
from visard.wire import (
    CLASSIFIER,
    ENSEMBLES,
    GENERATORS,
    MODELS,
    Swap,
    TensorSpec,
    check_probabilities,
    check_tensors,
    opposite_of,
    swap_of,
)
from visard_errors import RepositoryError, ServerRefused
from visard_preprocess.machine import cores

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Tensors = dict[str, NDArray[Any]]

_DIRECTIONS = {model: direction for direction, model in ENSEMBLES.items()}
_DATATYPES = {"tensor(uint8)": "UINT8", "tensor(int32)": "INT32", "tensor(float)": "FP32"}  # ONNX's words, Triton's


@dataclass(frozen=True, kw_only=True)
class Local:
    """A model repository whose models run in this process.

    Args:
        models: as ``visard export`` makes it, with the profile `cpu` or `gpu`.
        at_once: faces that are computed at the same time, each on one core; the number of cores by default.
        providers: onnxruntime's execution providers, the wanted one first: what the installed onnxruntime offers, such
            as ``CUDAExecutionProvider`` or ``CoreMLExecutionProvider``. Tried with the CPU's alone.
    """

    models: str | os.PathLike[str]
    at_once: int = cores()
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.at_once < 1:
            raise ValueError(f"at_once must be positive, not {self.at_once}")
        if not (Path(self.models) / "anonymizer").is_dir():
            raise RepositoryError(f"'{self.models}' is not a model repository of Visard: `visard export` makes one")


class LocalCalls:
    """What `visard.calls.Calls` is to a server: the calls of one client, on one event loop.

    Args:
        local: where the models are.
    """

    ensembles = ENSEMBLES

    def __init__(self, local: Local) -> None:
        self._local = local
        self._threads = ThreadPoolExecutor(local.at_once, thread_name_prefix="visard-models")
        self._files = {model: file for model in MODELS if (file := _newest(Path(local.models) / model)) is not None}
        self._sessions: dict[str, Any] = {}
        self._loading = threading.Lock()

    async def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def models(self) -> dict[str, bool]:
        """Say which models of the contract are there: an ensemble is where its parts are."""
        return {model: all(part in self._files for part in self._parts(model)) for model in MODELS}

    async def provenance(self) -> dict[str, dict[str, Any]]:
        """Say where the models come from: model name → what its export wrote about it."""
        found = {}
        for model, file in self._files.items():
            if (file.parent / "provenance.json").is_file():
                found[model] = json.loads((file.parent / "provenance.json").read_text(encoding="utf-8"))
        return found

    async def check_contract(self, model: str) -> None:
        """Load what the model needs, and compare its tensors with ours: a wrong model gives a clear error."""
        missing = [part for part in self._parts(model) if part not in self._sessions]
        if missing:  # else it would wait for a thread behind the faces under way
            await self._on_thread(lambda: [self._session(part) for part in missing])

    async def gender(self, image: NDArray[np.uint8]) -> ApparentGender:
        """Classify one aligned face, (1, 512, 512, 3) uint8 RGB."""
        answer = await self._on_thread(lambda: self._run(CLASSIFIER, image=image))
        return ApparentGender.from_probabilities(answer["gender"][0])

    async def swap(self, model: str, image: NDArray[np.uint8], persona: int) -> Swap:
        """Swap one aligned face, (1, 512, 512, 3) uint8 RGB, as one of `ENSEMBLES` does it."""
        return await self._on_thread(partial(self._swap, model, image, persona))

    def _swap(self, model: str, image: NDArray[np.uint8], persona: int) -> Swap:
        given: Tensors = {"image": image, "persona": np.array([[persona]], np.int32)}
        answer: Tensors = {}
        if model in self._files:  # the anonymizer as one graph
            answer = self._run(model, **given)
        else:
            direction = _DIRECTIONS[model]
            if direction == "opposite":
                answer = self._run(CLASSIFIER, image=image)
                direction = opposite_of(answer["gender"][0])
            answer |= self._run(GENERATORS[direction], **given)
            answer["swapped_gender"] = self._run(CLASSIFIER, image=answer["swapped"])["gender"]
        return swap_of(answer, answer["swapped"][0])

    def _parts(self, model: str) -> tuple[str, ...]:
        """The ONNX files that a model of the contract is computed with."""
        if model not in _DIRECTIONS or model in self._files:
            return (model,)
        direction = _DIRECTIONS[model]
        return (*(GENERATORS.values() if direction == "opposite" else [GENERATORS[direction]]), CLASSIFIER)

    def _run(self, model: str, **tensors: NDArray[Any]) -> Tensors:
        session = self._session(model)
        names = [tensor.name for tensor in MODELS[model].outputs]
        try:
            answer: Tensors = dict(zip(names, session.run(names, tensors), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ServerRefused(f"model '{model}' failed: {error}") from None
        for name, values in answer.items():
            check_probabilities(model, name, values)
        return answer

    def _session(self, model: str) -> Any:
        with self._loading:
            if model not in self._sessions:
                self._sessions[model] = self._load(model)
            return self._sessions[model]

    def _load(self, model: str) -> Any:
        import onnxruntime

        file = self._files.get(model)
        if file is None:
            raise ServerRefused(f"'{self._local.models}' lacks the model '{model}': export it again, without TensorRT")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a face on each core is faster than each face on all of them
        options.log_severity_level = 3  # errors
        try:
            session = onnxruntime.InferenceSession(file, options, providers=list(self._local.providers))
        except Exception as error:  # see _run
            raise ServerRefused(f"'{file}' cannot be loaded: {error}") from None
        inputs, outputs = (
            [TensorSpec(each.name, _DATATYPES.get(each.type, each.type), tuple(each.shape[1:])) for each in tensors]
            for tensors in (session.get_inputs(), session.get_outputs())
        )
        check_tensors(model, inputs, outputs)
        return session

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _newest(model: Path) -> Path | None:
    """The file of the version that a server would serve: the highest number."""
    numbered = {int(file.parent.name): file for file in model.glob("*/model.onnx") if file.parent.name.isdecimal()}
    return numbered[max(numbered)] if numbered else None
