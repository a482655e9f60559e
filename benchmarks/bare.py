"""The ceiling of serving on a CPU: the ensemble's three graphs in a bare loop with onnxruntime, without a server.

In one process, on as many threads as the machine has cores, in two layouts: every graph on all cores, one image after
another, or one image per core, each graph on one thread. A served image is held against the faster of the two.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

CORES = len(os.sched_getaffinity(0))
LAYOUTS = tuple(sorted({1, CORES}))  # loops that share the cores
_MODELS = ("gender_classifier", "generator_to_male", "generator_to_female")

Sessions = dict[str, onnxruntime.InferenceSession]


def bare_rate(repository: Path, image: NDArray[np.uint8], seconds: float, loops: int) -> float:
    """Images per second of `loops` loops that share the cores. `image` is (1, 512, 512, 3) uint8."""
    sessions = [_load(repository, CORES // loops) for _ in range(loops)]
    for session in sessions:
        _run(session, image)
    counts = [0] * loops
    start = time.perf_counter()

    def loop(number: int) -> None:
        while time.perf_counter() - start < seconds:
            _run(sessions[number], image)
            counts[number] += 1

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def _load(repository: Path, threads: int) -> Sessions:
    """One session per graph, from the very files that the server has loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return {
        model: onnxruntime.InferenceSession(_newest(repository / model), options, providers=["CPUExecutionProvider"])
        for model in _MODELS
    }


def _newest(model: Path) -> Path:
    """The version that Triton serves: the highest number."""
    return max(model.glob("*/model.onnx"), key=lambda path: int(path.parent.name))


def _run(sessions: Sessions, image: NDArray[np.uint8]) -> None:
    """One image through the three graphs."""
    (gender,) = sessions["gender_classifier"].run(None, {"image": image})
    generator = "generator_to_male" if gender[0, 0] >= gender[0, 1] else "generator_to_female"
    (swapped,) = sessions[generator].run(None, {"image": image, "persona": np.zeros((1, 1), np.int32)})
    sessions["gender_classifier"].run(None, {"image": swapped})
