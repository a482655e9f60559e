"""The demo models put together without torch: their graphs, taken out of an export, and the demo weights.

An export needs torch and half a minute. What is shipped instead are its graphs without their large tensors, each of
which is named by the digest of its bytes: nearly all come out of the weights files, converted as the export does it.
The file that results is the exported one to the last bit, which its provenance proves.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from safetensors.numpy import load_file

from visard_errors import ExportError
from visard_export.networks.atlas import DIRECTIONS, decode_sheet
from visard_export.repository import MODEL_FILE, PROVENANCE_FILE, assemble, publish, staging

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
CLASSIFIER_FILE, PERSONA_FILE = "gender_classifier.safetensors", "persona.safetensors"
GRAPHS_FILE = "graphs.zip"

_INLINE_BYTES = 512  # a smaller tensor stays in its graph
_BATCH_NORM_EPSILON = np.float32(1e-5)


def put_together(target: Path, report: Callable[[str], None] = lambda line: None) -> None:
    """Make the demo models' repository for this machine's CPU.

    Args:
        target: the folder to make; a repository that was there is replaced, anything else is left alone.
        report: takes a line of progress.

    Raises:
        ExportError: the shipped files are damaged, or this machine computes something else from them.
        RepositoryError: the target cannot be written or is something else.
    """
    with staging(target, report) as stage:
        report("putting the demo models together")
        try:
            with zipfile.ZipFile(WEIGHTS_FOLDER / GRAPHS_FILE) as graphs:
                _write_versions(graphs, stage / "versions")
        except Exception as error:  # of five libraries that read the files
            raise ExportError(
                f"the demo models cannot be put together from {WEIGHTS_FOLDER} ({error}): free some space, or install "
                "visard again"
            ) from None
        assemble(stage / "versions", stage / "repository")
        publish(stage / "repository", target)


def take_apart(versions: Mapping[str, Path], graphs_file: Path) -> None:
    """Write what `put_together` needs beside the demo weights.

    Args:
        versions: of each model that was exported from them, the folder with its file and its provenance.
        graphs_file: the file to write.
    """
    known = {_digest(data) for data in _tensors()}
    with zipfile.ZipFile(graphs_file, "w", zipfile.ZIP_LZMA) as graphs:

        def write(name: str, data: bytes) -> None:
            graphs.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_LZMA)  # of no date: the same bytes every time

        for name, folder in sorted(versions.items()):
            model = onnx.load(folder / MODEL_FILE)
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) > _INLINE_BYTES:
                    digest = _digest(tensor.raw_data)
                    if digest not in known:
                        write(digest, tensor.raw_data)
                        known.add(digest)
                    tensor.ClearField("raw_data")
                    tensor.data_location = TensorProto.EXTERNAL
                    tensor.external_data.add(key="location", value=digest)
            write(f"{name}/{MODEL_FILE}", model.SerializeToString(deterministic=True))
            write(f"{name}/{PROVENANCE_FILE}", (folder / PROVENANCE_FILE).read_bytes())


def _write_versions(graphs: zipfile.ZipFile, versions: Path) -> None:
    tensors = {_digest(data): data for data in _tensors()}
    for name in graphs.namelist():
        if not name.endswith(MODEL_FILE):
            continue
        model = onnx.load_from_string(graphs.read(name))
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                digest = tensor.external_data[0].value
                tensor.raw_data = tensors.get(digest) or graphs.read(digest)
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
        folder = versions / Path(name).parent
        folder.mkdir(parents=True)
        data = model.SerializeToString(deterministic=True)
        provenance = graphs.read(f"{folder.name}/{PROVENANCE_FILE}")
        if _digest(data) != json.loads(provenance)["model_sha256"]:
            raise ValueError(f"{folder.name} is not what was exported")
        (folder / MODEL_FILE).write_bytes(data)
        (folder / PROVENANCE_FILE).write_bytes(provenance)


def _tensors() -> Iterator[bytes]:
    """Everything that an export makes of the demo weights: the raw bytes of an ONNX file's tensors."""
    classifier, persona = (load_file(WEIGHTS_FOLDER / name) for name in (CLASSIFIER_FILE, PERSONA_FILE))
    sheets = [decode_sheet(persona.pop(f"atlas_{direction}")).astype(np.float16).tobytes() for direction in DIRECTIONS]
    yield from (*sheets, b"".join(sheets))
    single = {name: array.astype(np.float32) for name, array in (*classifier.items(), *persona.items())}
    yield from (array.tobytes() for array in single.values())
    for name in classifier:
        if name.endswith(".running_var"):
            yield from (array.tobytes() for array in _folded(single, name.removesuffix(".running_var")))


def _folded(tensors: Mapping[str, NDArray[np.float32]], norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and biases of the convolution before a batch norm, which is multiplied into them as torch does it."""
    convolution = norm.replace("bn", "conv").replace("downsample.1", "downsample.0")
    scale, shift, mean, variance = (
        tensors[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    inverse = 1 / np.sqrt(variance + _BATCH_NORM_EPSILON)
    return tensors[f"{convolution}.weight"] * (scale * inverse)[:, None, None, None], (
        0 - mean
    ) * inverse * scale + shift


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
