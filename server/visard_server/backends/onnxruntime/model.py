"""Serves ONNX models in Triton with the onnxruntime wheel, as a *Python-based backend*.

It answers to `backend: "onnxruntime"`, so that one model repository serves here and in NVIDIA's container, whose
native backend of that name understands the same settings: instance kind and device, `execution_accelerators`
(tensorrt), `intra_op_thread_count` and `inter_op_thread_count`. It serves any ONNX model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

# TensorRT settings of Triton's native backend whose names differ from the provider's own (`trt_…`).
_TENSORRT_OPTIONS = {"max_workspace_size_bytes": "trt_max_workspace_size"}


class TritonPythonModel:
    """One onnxruntime session: one instance of one model on one device."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Complete nothing: the configurations are the contract and are written in full."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and check it against its configuration.

        Raises:
            TritonModelException: a plain sentence on what is wrong; Triton quotes it when it refuses the model.
        """
        config = json.loads(args["model_config"])
        # Triton passes the backend's folder as the repository's model path only to Python models of its own.
        path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
        if not path.is_file():
            raise pb_utils.TritonModelException(f"{path} is missing: export the model into this repository")
        providers = _providers(config, args["model_instance_kind"], int(args["model_instance_device_id"]))
        if args["model_instance_kind"] == "GPU":
            onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels, which the linker does not search
        try:
            self._session = onnxruntime.InferenceSession(path, _session_options(config), providers=providers)
        except Exception as error:  # onnxruntime has no common base class; every one of them means "cannot be loaded"
            raise pb_utils.TritonModelException(f"{path} cannot be loaded: {error}") from None
        wanted = providers[0][0]
        if wanted not in self._session.get_providers():  # onnxruntime itself only warns, and computes on the CPU
            raise pb_utils.TritonModelException(f"{wanted} cannot start here: see onnxruntime's messages above")
        batched = config["max_batch_size"] > 0
        _check_tensors("input", config["input"], self._session.get_inputs(), batched)
        _check_tensors("output", config["output"], self._session.get_outputs(), batched)
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch; if that fails, each for itself, so that only the bad one pays."""
        try:
            return self._run(requests)
        except Exception as error:  # see initialize
            if len(requests) == 1:
                return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnxruntime: {error}"))]
            return [self.execute([request])[0] for request in requests]

    def _run(self, requests: list[Any]) -> list[Any]:
        batch = {}
        for name in self._inputs:
            parts = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            batch[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        outputs = self._session.run(self._outputs, batch)
        if len(requests) == 1:
            return [_response(self._outputs, outputs)]
        ends = np.cumsum([len(part) for part in parts])
        return [
            _response(self._outputs, [output[end - len(part) : end] for output in outputs])  # views, no copies
            for part, end in zip(parts, ends, strict=True)
        ]


def _response(names: list[str], arrays: list[Any]) -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in zip(names, arrays, strict=True)]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _count(config, "intra_op_thread_count")
    options.inter_op_num_threads = _count(config, "inter_op_thread_count")
    # Every model is a process here: threads that spin for work would take the cores from the other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; at startup the warnings are about nodes kept on the CPU on purpose
    return options


def _count(config: dict[str, Any], parameter: str) -> int:
    text = config["parameters"].get(parameter, {}).get("string_value", "0")  # 0: onnxruntime decides
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"parameter {parameter} must be a whole number, got '{text}'")
    return int(text)


def _providers(config: dict[str, Any], kind: str, device: int) -> list[tuple[str, dict[str, Any]]]:
    """Name onnxruntime's execution providers for an instance, the wanted one first, each with its options."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    on_cpu = [accelerator["name"] for accelerator in accelerators.get("cpu_execution_accelerator", [])]
    on_gpu = {
        accelerator["name"]: accelerator.get("parameters", {})
        for accelerator in accelerators.get("gpu_execution_accelerator", [])
    }
    if on_cpu or on_gpu.keys() - {"tensorrt"}:
        unknown = ", ".join([*on_cpu, *(on_gpu.keys() - {"tensorrt"})])
        raise pb_utils.TritonModelException(f"execution accelerator {unknown} is not supported here: only tensorrt is")
    cpu: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})
    if kind == "CPU":
        if on_gpu:
            raise pb_utils.TritonModelException("execution accelerator tensorrt needs an instance of KIND_GPU")
        return [cpu]
    wanted: list[tuple[str, dict[str, Any]]] = [("CUDAExecutionProvider", {"device_id": device})]
    if on_gpu:
        wanted.insert(0, ("TensorrtExecutionProvider", {"device_id": device, **_tensorrt_options(on_gpu["tensorrt"])}))
    for provider, _ in wanted:
        if provider not in onnxruntime.get_available_providers():
            raise pb_utils.TritonModelException(
                f"the installed onnxruntime has no {provider}: pip install 'visard[serve-gpu]' in place of "
                "'visard[serve]', or export the repository for the CPU"
            )
    return [*wanted, cpu]


def _tensorrt_options(parameters: dict[str, str]) -> dict[str, Any]:
    options = {_TENSORRT_OPTIONS.get(name, name): value for name, value in parameters.items()}
    options["trt_fp16_enable"] = options.pop("precision_mode", "FP32") == "FP16"
    for name in ("trt_engine_cache_path", "trt_timing_cache_path"):
        if name in options:
            try:
                Path(options[name]).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise pb_utils.TritonModelException(
                    f"{name} '{options[name]}' cannot be made ({error.strerror}): make it, writable for this user, or "
                    "name another folder in the models' config.pbtxt"
                ) from None
    return options


def _check_tensors(side: str, configured: list[dict[str, Any]], offered: list[Any], batched: bool) -> None:
    by_name = {tensor.name: tensor for tensor in offered}
    if by_name.keys() != {tensor["name"] for tensor in configured}:
        raise pb_utils.TritonModelException(
            f"the ONNX graph has {side}s {sorted(by_name)}, config.pbtxt has "
            f"{sorted(tensor['name'] for tensor in configured)}"
        )
    for tensor in configured:
        graph = by_name[tensor["name"]]
        dims = [int(dim) for dim in tensor["dims"]]
        if batched and (not graph.shape or isinstance(graph.shape[0], int)):
            raise pb_utils.TritonModelException(
                f"the ONNX graph has '{graph.name}' as {graph.shape}: a batched model needs a free first dimension"
            )
        shape = graph.shape[1:] if batched else graph.shape
        fits = len(shape) == len(dims) and all(
            dim == size or dim == -1 or not isinstance(size, int) for dim, size in zip(dims, shape, strict=True)
        )
        if not fits or graph.type != _onnx_type(tensor["data_type"]):
            raise pb_utils.TritonModelException(
                f"the ONNX graph has {side} '{graph.name}' as {graph.type} {graph.shape}, "
                f"config.pbtxt as {tensor['data_type']} {dims}"
            )


def _onnx_type(data_type: str) -> str:
    """Translate Triton's `TYPE_FP32` into onnxruntime's `tensor(float)`."""
    words = {"FP16": "float16", "FP32": "float", "FP64": "double"}
    name = data_type.removeprefix("TYPE_")
    return f"tensor({words.get(name, name.lower())})"
