"""A TensorRT engine from an exported ONNX file, for the GPU of the machine that runs this.

The network is strongly typed: every tensor has the type that the ONNX graph gives it, so the engine is in the
precision that `visard_export.onnx` has asserted. An engine fits one GPU model and one TensorRT version only. The other
way, which needs no such file, is the TensorRT accelerator in the configurations of the `gpu` profile.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from visard_errors import ExportError
from visard_export.repository import WORKSPACE_BYTES, engine_batches


def build_engine(onnx_path: Path, plan_path: Path, max_batch: int) -> None:
    """Build an engine; takes minutes for the published generator.

    Args:
        onnx_path: an exported model; of its inputs only the batch size is free.
        plan_path: the file to write, `model.plan` for Triton's TensorRT backend; its folder must exist.
        max_batch: the largest batch that it takes.

    Raises:
        ExportError: TensorRT is not installed, or rejects the model.
    """
    trt = require()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    # TensorRT 11 knows no other kind of network and ignores the flag; 10 needs it, and 8 lacks it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(onnx_path.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(f"TensorRT {trt.__version__} cannot read {onnx_path.name}: {reasons}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in engine_batches(max_batch)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"TensorRT {trt.__version__} could not build {onnx_path.name}: its own log above says why")
    plan_path.write_bytes(engine)


def require() -> Any:
    """Import TensorRT.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise ExportError(
            "building an engine needs TensorRT on a machine with an NVIDIA GPU: pip install 'tensorrt>=10'. "
            "Without it, the onnxruntime backend runs the same model"
        ) from error
