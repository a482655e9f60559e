"""The work that every peer does for one request: the same ONNX files, run by onnxruntime on the CPU.

Two workloads. `identity` is a graph that returns its input, so that what is left to measure is transport, batching and
scheduling. `photos` is what `anonymizer` does: classify, swap by the generator of the other gender, classify again.

It needs numpy and onnxruntime and nothing of Visard, because it runs in the peers' own virtual environments.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SHAPE = 512, 512, 3
IMAGE_BYTES = 786_432
MODELS = "gender_classifier", "generator_to_male", "generator_to_female"


class Graph:
    """One thread's sessions.

    Args:
        models: a model repository, or a single ONNX file with the identity.
        threads: of each session; one by default, because instances share the cores better than threads do.
    """

    def __init__(self, models: str | Path, threads: int = 1) -> None:
        models = Path(models)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        paths = {"identity": models} if models.is_file() else {name: newest(models / name) for name in MODELS}
        self._sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in paths.items()
        }

    def __call__(self, images: NDArray[np.uint8]) -> list[bytes]:
        """Run a batch.

        Args:
            images: (N, 512, 512, 3) uint8 RGB.

        Returns:
            One answer per image: the pixels and, for `photos`, (female, male) before and after as float32.
        """
        if "identity" in self._sessions:
            (swapped,) = self._sessions["identity"].run(None, {"image": images, "persona": persona(len(images))})
            return [image.tobytes() for image in swapped]
        return [self._swap(images[index : index + 1]) for index in range(len(images))]

    def generator(self, image: NDArray[np.uint8]) -> str:
        """Name of the generator that (1, 512, 512, 3) uint8 goes to."""
        return self._chosen(self._sessions["gender_classifier"].run(None, {"image": image})[0])

    def _chosen(self, gender: NDArray[np.float32]) -> str:
        return "generator_to_male" if gender[0, 0] >= gender[0, 1] else "generator_to_female"

    def _swap(self, image: NDArray[np.uint8]) -> bytes:
        """One face; a batch saves a CPU nothing, so the graphs take the faces one by one."""
        (gender,) = self._sessions["gender_classifier"].run(None, {"image": image})
        (swapped,) = self._sessions[self._chosen(gender)].run(None, {"image": image, "persona": persona(1)})
        (swapped_gender,) = self._sessions["gender_classifier"].run(None, {"image": swapped})
        return b"".join(tensor.tobytes() for tensor in (swapped, gender, swapped_gender))


def newest(model: Path) -> Path:
    """The graph of the version that Triton serves: the highest number."""
    return max(model.glob("*/model.onnx"), key=lambda path: int(path.parent.name))


def persona(faces: int) -> NDArray[np.int32]:
    """(N, 1) int32: whose look each face gets. Always the same one: all cost the same."""
    return np.zeros((faces, 1), np.int32)


def batch_of(bodies: list[bytes]) -> NDArray[np.uint8]:
    """(N, 512, 512, 3) uint8 of N request bodies."""
    if len(bodies) == 1:
        return np.frombuffer(bodies[0], np.uint8).reshape(1, *SHAPE)
    return np.frombuffer(b"".join(bodies), np.uint8).reshape(len(bodies), *SHAPE)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def arguments(description: str | None) -> argparse.Namespace:
    """What every peer is told: its `port`, and where its `models` are."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", required=True)
    return parser.parse_args()
