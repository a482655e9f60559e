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
    check_probabilities,
    other_shape,
)
from visard_errors import RepositoryError, ServerRefused

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Tensors = dict[str, NDArray[Any]]

_DIRECTIONS = {model: direction for direction, model in ENSEMBLES.items()}
_ONNX_TYPES = {"UINT8": "tensor(uint8)", "INT32": "tensor(int32)", "FP32": "tensor(float)"}


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
    at_once: int = os.cpu_count() or 1
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
        self._sessions: dict[str, Any] = {}
        self._loading = threading.Lock()

    async def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def models(self) -> dict[str, bool]:
        """Say which models of the contract are there: an ensemble is where its parts are."""
        return {model: all(self._file(part) is not None for part in self._parts(model)) for model in MODELS}

    async def provenance(self) -> dict[str, dict[str, Any]]:
        """Say where the models come from: model name → what its export wrote about it."""
        found = {}
        for model in MODELS:
            file = self._file(model)
            if file is not None and (file.parent / "provenance.json").is_file():
                found[model] = json.loads((file.parent / "provenance.json").read_text(encoding="utf-8"))
        return found

    async def check_contract(self, model: str) -> None:
        """Load what the model needs, and compare its tensors with ours: a wrong model gives a clear error."""
        await self._on_thread(lambda: [self._session(part) for part in self._parts(model)])

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
        if self._file(model) is not None:  # the anonymizer as one graph
            answer = self._run(model, **given)
        else:
            direction = _DIRECTIONS[model]
            if direction == "opposite":
                answer = self._run(CLASSIFIER, image=image)
                female, male = answer["gender"][0]
                direction = "to_female" if male > female else "to_male"  # a tie counts as female, as the router has it
            answer |= self._run(GENERATORS[direction], **given)
            answer["swapped_gender"] = self._run(CLASSIFIER, image=answer["swapped"])["gender"]
        gender = answer.get("gender")
        return Swap(
            swapped=answer["swapped"][0],
            gender=None if gender is None else gender[0],
            swapped_gender=answer["swapped_gender"][0],
        )

    def _parts(self, model: str) -> tuple[str, ...]:
        """The ONNX files that a model of the contract is computed with."""
        if model not in _DIRECTIONS or self._file(model) is not None:
            return (model,)
        direction = _DIRECTIONS[model]
        return (*(GENERATORS.values() if direction == "opposite" else [GENERATORS[direction]]), CLASSIFIER)

    def _file(self, model: str) -> Path | None:
        """The file of the version that a server would serve: the highest number."""
        files = (Path(self._local.models) / model).glob("*/model.onnx")
        numbered = {int(file.parent.name): file for file in files if file.parent.name.isdecimal()}
        return numbered[max(numbered)] if numbered else None

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

        file = self._file(model)
        if file is None:
            raise ServerRefused(f"'{self._local.models}' lacks the model '{model}': export it again, without TensorRT")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a face on each core is faster than each face on all of them
        options.log_severity_level = 3  # errors
        try:
            session = onnxruntime.InferenceSession(file, options, providers=list(self._local.providers))
        except Exception as error:  # see _run
            raise ServerRefused(f"'{file}' cannot be loaded: {error}") from None
        for wanted, offered in (
            (MODELS[model].inputs, session.get_inputs()),
            (MODELS[model].outputs, session.get_outputs()),
        ):
            by_name = {tensor.name: tensor for tensor in offered}
            for spec in wanted:
                tensor = by_name.get(spec.name)
                if tensor is None:
                    raise ServerRefused(f"model '{model}' has no tensor '{spec.name}'; it needs a new export")
                shape = tuple(tensor.shape[1:])  # the first dimension is the batch
                if (tensor.type, shape) != (_ONNX_TYPES[spec.datatype], spec.shape):
                    raise ServerRefused(other_shape(model, spec, tensor.type, shape))
        return session

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
