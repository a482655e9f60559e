"""What runs the generator: torch, onnxruntime and TensorRT behind one interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visard_benchmarks.gpu.meters import synchronize
from visard_benchmarks.gpu.variants import Job, Variant

Images = NDArray[np.uint8]


def personas(images: Images) -> NDArray[np.int32]:
    """(N, 1): whose look each face gets; chosen and not drawn, so that all variants draw the same picture."""
    return np.zeros((len(images), 1), np.int32)


class TorchRunner:
    """The served graph in torch, its images already on the device."""

    def __init__(self, variant: Variant, job: Job, images: Images) -> None:
        import torch

        from visard_export.checkpoints import load_generator
        from visard_export.graphs import build_graph

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = variant.precision == "tf32"
        network = load_generator(job.work / "to_male.safetensors").network()
        graph = build_graph(network, "fp16" if variant.precision == "fp16" else "fp32").to(job.device)
        if "channels_last" in variant.settings:
            graph = graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stub
        mode = variant.settings.get("compile")
        self._call: Callable[[Any, Any], Any] = torch.compile(graph, dynamic=False, mode=mode) if mode else graph
        self._images = torch.from_numpy(images).to(job.device)
        self._persona = torch.from_numpy(personas(images)).to(job.device)
        self._device = job.device

    def run(self) -> None:
        """Start one batch."""
        import torch

        with torch.inference_mode():
            self._answer = self._call(self._images, self._persona)

    def wait(self) -> None:
        """Return when all batches have ended."""
        synchronize(self._device)

    def answer(self) -> Images:
        """Give the last batch's images."""
        return np.asarray(self._answer.cpu().numpy())


class OrtRunner:
    """The exported graph in onnxruntime; images and answers stay on the device unless `copies` is asked for."""

    def __init__(self, variant: Variant, job: Job, images: Images) -> None:
        import onnxruntime

        if job.device == "cuda":
            _load_cuda_libraries(onnxruntime)
        settings = dict(variant.settings)
        self._copies = settings.pop("copies", "0") == "1"
        wanted, providers = _providers(variant, job, settings)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # With it, a node that would run on the CPU between two copies is an error and not a slow surprise.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(job.device == "cuda")))
        self.note = ""
        try:
            self._session = onnxruntime.InferenceSession(job.onnx, options, providers=providers)
        except Exception as error:
            if "fallback" not in str(error):
                raise
            self.note = "parts of the graph run on the CPU"
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
            self._session = onnxruntime.InferenceSession(job.onnx, options, providers=providers)
        if wanted not in self._session.get_providers():  # onnxruntime itself only warns, and computes elsewhere
            raise RuntimeError(f"{wanted} could not start: see onnxruntime's messages")
        self._images, self._persona = images, personas(images)
        self._out = onnxruntime.OrtValue.ortvalue_from_shape_and_type(images.shape, np.uint8, job.device, 0)
        self._binding = self._session.io_binding()
        for name, given in (("image", images), ("persona", self._persona)):
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(given, job.device, 0))
        self._binding.bind_ortvalue_output("swapped", self._out)

    def run(self) -> None:
        """Start one batch."""
        if self._copies:
            (self._answer,) = self._session.run(None, {"image": self._images, "persona": self._persona})
        else:
            self._session.run_with_iobinding(self._binding)

    def wait(self) -> None:
        """Nothing to do: both calls return when the answer is there."""

    def answer(self) -> Images:
        """Give the last batch's images."""
        return np.asarray(self._answer if self._copies else self._out.numpy())


def _providers(variant: Variant, job: Job, settings: dict[str, str]) -> tuple[str, list[Any]]:
    """Which provider is wanted, and all of them in order with their options."""
    import onnxruntime

    from visard_export.repository import WORKSPACE_BYTES, engine_batches

    # onnxruntime's Python takes "True" and "False" for this provider's switches and refuses "1".
    tensorrt = {
        "trt_max_workspace_size": str(WORKSPACE_BYTES),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(job.work),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(job.work),
    }
    for name, batch in zip(("min", "opt", "max"), engine_batches(max(job.batches)), strict=True):
        tensorrt[f"trt_profile_{name}_shapes"] = f"image:{batch}x512x512x3,persona:{batch}x1"
    cuda: tuple[str, dict[str, str]] = ("CUDAExecutionProvider", {"device_id": "0", **settings})
    wanted = cuda[0]
    providers: list[Any] = [cuda]
    if variant.runtime == "onnxruntime-tensorrt":
        wanted = "TensorrtExecutionProvider"
        providers = [
            (wanted, {"device_id": "0", **tensorrt, **settings}),
            ("CUDAExecutionProvider", {"device_id": "0"}),
        ]
    elif job.device == "cpu":
        return "CPUExecutionProvider", ["CPUExecutionProvider"]
    if wanted not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {wanted}: pip install onnxruntime-gpu in place of onnxruntime")
    return wanted, providers


def _load_cuda_libraries(onnxruntime: Any) -> None:
    """Load CUDA, cuDNN and TensorRT from their wheels, where onnxruntime does not look by itself."""
    import torch  # noqa: F401 - its import loads its own

    onnxruntime.preload_dlls()
    with suppress(ImportError):
        importlib.import_module("tensorrt")


class TensorrtRunner:
    """An engine of the exported graph, built once for all batch sizes."""

    def __init__(self, variant: Variant, job: Job, images: Images) -> None:
        from visard_export.tensorrt import build_engine, require

        trt = require()
        import torch

        plan = job.work / "model.plan"
        if not plan.is_file():
            build_engine(job.onnx, plan, max(job.batches))
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._images = torch.from_numpy(images).to("cuda")
        self._persona = torch.from_numpy(personas(images)).to("cuda")
        self._out = torch.empty_like(self._images)
        torch.cuda.synchronize()
        for name, given in (("image", self._images), ("persona", self._persona)):
            self._context.set_input_shape(name, tuple(given.shape))
            self._context.set_tensor_address(name, given.data_ptr())
        self._context.set_tensor_address("swapped", self._out.data_ptr())

    def run(self) -> None:
        """Start one batch."""
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT could not start the engine: see its messages")

    def wait(self) -> None:
        """Return when all batches have ended."""
        self._stream.synchronize()

    def answer(self) -> Images:
        """Give the last batch's images."""
        return np.asarray(self._out.cpu().numpy())


RUNNERS: dict[str, Callable[[Variant, Job, Images], Any]] = {
    "torch": TorchRunner,
    "onnxruntime": OrtRunner,
    "onnxruntime-tensorrt": OrtRunner,
    "tensorrt": TensorrtRunner,
}
