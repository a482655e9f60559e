"""Tiny real ONNX models for the whole contract, whose answers numpy can predict, and repositories made of them.

Female is dark and male is bright: the generators draw one and the same face over a weak negative of the original,
`generator_to_male` in the bright half of the levels and `generator_to_female` in the dark half. So a swap shows a face,
flips what the classifier says, and dlib's recogniser does not match it with the original. They have no use for the
number of a persona, or else write it into the picture.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tritonclient.grpc import model_config_pb2

from visard_export.repository import AFTER_GENERATORS, ENCODED_MODELS, SMALL_CLASSIFIER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

MODEL_REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
IMAGE_SIZE = 512
LOWEST = {
    "generator_to_male": 110,
    "generator_to_female": 0,
}  # a generator draws lowest + (3 · face + 255 − level) // 8
FACE = np.asarray(Image.open(Path(__file__).parent / "face.png"))  # (128, 128) grey: of a generated portrait (CC0)
STRIPE = slice(496, 504)  # rows below the face into which a generator writes the persona, as JPEG keeps it:
DIGITS = 16  # blocks of 2 bits each, the lowest first,
DIGIT_LEVELS = 64  # as grey levels 0, 64, 128 and 192
HELD_AT_MOST_S = 120  # what waits for ever is a failed test, not a test without an end
STEEPNESS = 1 / 8  # of the classifier's logistic curve, per grey level of mean brightness away from 127.5


def expected_gender(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 512, 512, 3) uint8 → (N, 2) float64 probabilities (female, male), as the tiny classifier gives them."""
    male = 1 / (1 + np.exp(-STEEPNESS * (images.mean(axis=(1, 2, 3), dtype=np.float64) - 127.5)))
    return np.stack([1 - male, male], axis=1)


def expected_swap(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 512, 512, 3) uint8 → the same, each image brought to the other gender, exact to the last bit."""
    is_female = images.mean(axis=(1, 2, 3)) < 127.5
    return np.where(is_female[:, None, None, None], expected_to_male(images), expected_to_female(images))


def expected_to_male(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _drawn(LOWEST["generator_to_male"], images)


def expected_to_female(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _drawn(LOWEST["generator_to_female"], images)


def _drawn(lowest: int, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (lowest + (_face_and_white(IMAGE_SIZE) - images) // 8).astype(np.uint8)


def _face_and_white(size: int) -> NDArray[np.int32]:
    return 3 * np.kron(FACE, np.ones((size // len(FACE),) * 2, np.int32))[..., None] + 255


def written_personas(swapped: NDArray[np.uint8]) -> list[int]:
    """Read the numbers that generators wrote into (N, 512, 512, 3) uint8, which may have been a JPEG meanwhile."""
    blocks = swapped[:, STRIPE].reshape(len(swapped), 8, DIGITS, -1)
    digits = (blocks.mean(axis=(1, 3)) / DIGIT_LEVELS).round()
    bits = (digits.astype(np.uint64) << 2 * np.arange(DIGITS, dtype=np.uint64)).sum(axis=1)
    return [int(number) for number in bits.astype(np.uint32).view(np.int32)]


def without_stripe(swapped: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Leave out the rows into which generators write numbers."""
    return np.delete(swapped, STRIPE, axis=1)


def classifier(*, size: int = IMAGE_SIZE, unknown_below: float = 0.0) -> onnx.ModelProto:
    """Softmax of (0, steepness · (mean brightness − 127.5)); not a number where the mean is below `unknown_below`."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Sub", ["column", "lowest"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Sub", ["column", "middle"], ["distance"]),
        helper.make_node("Mul", ["distance", "slopes"], ["known"]),
        helper.make_node("Add", ["known", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["gender"], axis=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axes": np.array([1, 2, 3]),
        "one": np.array([1]),
        "lowest": np.array(unknown_below, np.float32),
        "zero": np.array(0, np.float32),
        "middle": np.array(127.5, np.float32),
        "slopes": np.array([[0, STEEPNESS]], np.float32),
    }
    return build(nodes, constants, ("gender", TensorProto.FLOAT, ["N", 2]), size=size, persona=False)


def generator(lowest: int, *, size: int = IMAGE_SIZE, writes_persona: bool = False) -> onnx.ModelProto:
    """The face over a negative: lowest + (3 · face + 255 − level) // 8.

    `writes_persona` puts the number below it, see `written_personas`.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.INT32),
        helper.make_node("Sub", ["face_and_white", "levels"], ["sum"]),
        helper.make_node("Div", ["sum", "eight"], ["faint"]),
        helper.make_node("Add", ["faint", "lowest"], ["level"]),
        helper.make_node("Cast", ["level"], ["drawn" if writes_persona else "swapped"], to=TensorProto.UINT8),
    ]
    constants: dict[str, NDArray[Any]] = {
        "face_and_white": _face_and_white(size),
        "eight": np.array(8, np.int32),
        "lowest": np.array(lowest, np.int32),
    }
    if writes_persona:
        nodes += [
            helper.make_node("Cast", ["persona"], ["bits"], to=TensorProto.UINT32),
            helper.make_node("BitShift", ["bits", "shifts"], ["shifted"], direction="RIGHT"),
            helper.make_node("Mod", ["shifted", "four"], ["digits"]),
            helper.make_node("Mul", ["digits", "digit_levels"], ["grey"]),
            helper.make_node("Cast", ["grey"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("Unsqueeze", ["bytes", "axes"], ["blocks"]),
            helper.make_node("Expand", ["blocks", "block"], ["large"]),
            helper.make_node("Reshape", ["large", "stripe_shape"], ["stripe"]),
            helper.make_node("Slice", ["drawn", "top", "first", "rows"], ["above"]),
            helper.make_node("Slice", ["drawn", "last", "bottom", "rows"], ["below"]),
            helper.make_node("Concat", ["above", "stripe", "below"], ["swapped"], axis=1),
        ]
        constants |= {
            "shifts": np.arange(0, 2 * DIGITS, 2, dtype=np.uint32)[None],
            "four": np.array(4, np.uint32),
            "digit_levels": np.array(DIGIT_LEVELS, np.uint32),
            "axes": np.array([1, 3, 4]),
            "block": np.array([1, 8, DIGITS, size // DIGITS, 3]),
            "stripe_shape": np.array([-1, 8, size, 3]),
            "top": np.array([0]),
            "first": np.array([STRIPE.start]),
            "last": np.array([STRIPE.stop]),
            "bottom": np.array([size]),
            "rows": np.array([1]),
        }
    return build(nodes, constants, ("swapped", TensorProto.UINT8, ["N", size, size, 3]), size=size)


def build(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    output: tuple[str, int, list[Any]],
    *,
    size: int = IMAGE_SIZE,
    batch: str | int = "N",
    persona: bool = True,
) -> onnx.ModelProto:
    """Make a checked model of `image` (batch, size, size, 3) uint8, and `persona` (batch, 1) int32, and one output."""
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, size, size, 3])]
    if persona:
        inputs.append(helper.make_tensor_value_info("persona", TensorProto.INT32, [batch, 1]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


# A byte in the file `begun` for each batch, written before it is slept over; none is finished while there is `held`.
SLOW_GENERATOR = """
import pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

FOLDER = pathlib.Path(__file__).parent

class TritonPythonModel:
    def initialize(self, args):
        self.face_and_white = np.load(FOLDER / "face_and_white.npy")

    def execute(self, requests):
        with (FOLDER / "begun").open("ab") as begun:
            begun.write(b".")
        time.sleep({slow_s})
        end = time.monotonic() + {held_at_most_s}
        while (FOLDER / "held").exists() and time.monotonic() < end:
            time.sleep(0.01)
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        swapped = [({lowest} + (self.face_and_white - image) // 8).astype(np.uint8) for image in images]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("swapped", image)]) for image in swapped]
"""


@contextmanager
def held(repository: Path, model: str = "generator_*") -> Iterator[Callable[[], int]]:
    """Let slow generators of a repository finish nothing inside the `with` block, however slow the machine is.

    Yields:
        How many batches they have begun since.
    """
    folders = [path.parent for path in repository.glob(f"{model}/*/model.py")]

    def begun() -> int:
        return sum(path.stat().st_size for folder in folders for path in folder.glob("begun"))

    before = begun()
    for folder in folders:
        (folder / "held").touch()
    try:
        yield lambda: begun() - before
    finally:
        for folder in folders:
            (folder / "held").unlink()


def read_config(model: Path) -> model_config_pb2.ModelConfig:
    """Read the configuration in a model's folder."""
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def write_config(model: Path, config: model_config_pb2.ModelConfig) -> None:
    (model / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def tiny_repository(
    folder: Path,
    *,
    only: Collection[str] = (),
    size: int = IMAGE_SIZE,
    slow_s: float = 0.0,
    max_queue_size: int | None = None,
    encoded: bool = False,
    writes_persona: bool = False,
    small_classifier: bool = False,
) -> Path:
    """Copy the project's repository for the CPU into `folder`, with tiny models, ready to serve.

    Args:
        folder: must not exist yet.
        only: the models to keep; all where it is empty. Triton refuses an ensemble whose parts are missing.
        size: rows and columns of every image; anything but 512 is against the contract.
        slow_s: how long the generators sleep over each batch, or longer, see `held`; the result stays the same.
        max_queue_size: of every queue that a face enters by, instead of its own; what was generated is not refused.
        encoded: with the models for faces that travel as files.
        small_classifier: with the one that spares callers the router; else none is spared it.
        writes_persona: the generators write the number of the persona into what they draw, see `written_personas`.

    Returns:
        `folder`.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.onnx", "provenance.json", "README.md")
    shutil.copytree(MODEL_REPOSITORY, folder, ignore=ignored)
    for model in folder.iterdir():
        unwanted = (only and model.name not in only) or (model.name in ENCODED_MODELS and not encoded)
        if unwanted or (model.name == SMALL_CLASSIFIER and not small_classifier):
            shutil.rmtree(model)
            continue
        (model / "1").mkdir(exist_ok=True)
        config = read_config(model)
        del config.model_warmup[:]
        for group in config.instance_group:
            group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
            # One of each model, whose queue can be filled; the Python models are cut short only because there are many.
            group.count = min(group.count, 2) if config.backend == "python" else 1
        for tensor in (*config.input, *config.output):
            if len(tensor.dims) == 3 and model.name != SMALL_CLASSIFIER:
                tensor.dims[:] = [size, size, 3]
        first = config.HasField("dynamic_batching") and model.name not in AFTER_GENERATORS
        if max_queue_size is not None and first:
            config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size
        if model.name in ("gender_classifier", SMALL_CLASSIFIER):
            (image,) = config.input
            onnx.save(classifier(size=image.dims[0]), model / "1" / "model.onnx")
        if model.name.startswith("generator_"):
            lowest = LOWEST[model.name]
            if slow_s:
                config.backend = "python"
                np.save(model / "1" / "face_and_white.npy", _face_and_white(size))
                code = SLOW_GENERATOR.format(slow_s=slow_s, lowest=lowest, held_at_most_s=HELD_AT_MOST_S)
                (model / "1" / "model.py").write_text(code, encoding="utf-8")
            else:
                drawn = generator(lowest, size=size, writes_persona=writes_persona)
                onnx.save(drawn, model / "1" / "model.onnx")
        write_config(model, config)
    return folder
