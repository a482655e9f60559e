"""One way to run the generator, measured in a process of its own: `python -m visard_benchmarks.gpu.variants JOB.json`.

A job names a variant and where the models lie; each result is appended to the job's file as one line of JSON as soon as
it is there, so that what comes after it cannot take it away.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visard_benchmarks.gpu.meters import Gpu, gpu_uuid, measure, measure_peaks, synchronize

Images = NDArray[np.uint8]

MODEL = "generator_to_male"
PARITY_FACES = 4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the generator.

    Attributes:
        name: unique.
        runtime: what computes.
        precision: of its convolutions, and the peak that it is held against.
        settings: of the runtime: providers' options, or what the runner below asks for.
    """

    name: str
    runtime: Literal["torch", "onnxruntime", "onnxruntime-tensorrt", "tensorrt"]
    precision: Literal["fp32", "tf32", "fp16"] = "fp16"
    settings: Mapping[str, str] = field(default_factory=dict)


def _ort(layout: str, search: str, **more: str) -> Variant:
    options = {"cudnn_conv_algo_search": search, "prefer_nhwc": str(int(layout == "nhwc")), **more}
    graph = "-cudagraph" if more.get("enable_cuda_graph") == "1" else ""
    return Variant(name=f"ort-cuda-{layout}-{search.lower()}{graph}", runtime="onnxruntime", settings=options)


VARIANTS = (
    Variant(name="torch-fp32", runtime="torch", precision="fp32"),
    Variant(name="torch-tf32", runtime="torch", precision="tf32"),
    Variant(name="torch-fp16", runtime="torch"),
    Variant(name="torch-fp16-nhwc", runtime="torch", settings={"channels_last": "1"}),
    Variant(name="torch-compile", runtime="torch", settings={"channels_last": "1", "compile": "default"}),
    Variant(name="torch-compile-max", runtime="torch", settings={"channels_last": "1", "compile": "max-autotune"}),
    *(_ort(layout, search) for layout in ("nchw", "nhwc") for search in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")),
    *(_ort(layout, "EXHAUSTIVE", enable_cuda_graph="1") for layout in ("nchw", "nhwc")),
    Variant(name="ort-cuda-copies", runtime="onnxruntime", settings={"copies": "1"}),
    Variant(name="ort-tensorrt", runtime="onnxruntime-tensorrt"),
    Variant(name="ort-tensorrt-cudagraph", runtime="onnxruntime-tensorrt", settings={"trt_cuda_graph_enable": "True"}),
    Variant(name="tensorrt", runtime="tensorrt"),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to do.

    Attributes:
        task: `prepare`, `peaks` or a variant's name.
        work: folder that all processes of a run share; holds models and the sample's faces.
        out: file to append results to.
        device: `cuda`, or `cpu` in a dry run.
        batches: to measure, ascending.
        seconds: length of each measurement.
        tiny: tiny networks instead of the published size.
    """

    task: str
    work: Path
    out: Path
    device: str
    batches: tuple[int, ...]
    seconds: float
    tiny: bool

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({**asdict(self), "work": str(self.work), "out": str(self.out)}), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **{**values, "work": Path(values["work"]), "out": Path(values["out"]), "batches": tuple(values["batches"])}
        )

    @property
    def onnx(self) -> Path:
        """The generator's graph in mixed FP16, as the export wrote it."""
        return self.work / "models" / MODEL / "1" / "model.onnx"

    def report(self, **line: Any) -> None:
        """Append a result."""
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def prepare(job: Job) -> None:
    """Write seeded weights, export them, and compute what every variant is compared with: FP32 on the device."""
    import torch

    from visard_export.checkpoints import load_generator
    from visard_export.demo import random_checkpoints
    from visard_export.export import export_repository
    from visard_export.graphs import build_graph
    from visard_export.networks.architectures import Pix2PixHDArchitecture, ResNet18Architecture
    from visard_server.embedded import SAMPLE_PHOTO, aligned_faces

    if job.tiny:
        classifier = ResNet18Architecture(width=8)
        generator = Pix2PixHDArchitecture(ngf=4, n_downsampling=2, n_blocks=1)
    else:
        classifier, generator = ResNet18Architecture(), Pix2PixHDArchitecture()
    paths = random_checkpoints(job.work, classifier, generator)
    faces = variations(aligned_faces(SAMPLE_PHOTO)[0], max(*job.batches, PARITY_FACES))
    np.save(job.work / "faces.npy", faces)
    export_repository(
        job.work / "models",
        classifier=paths.classifier,
        to_male=paths.to_male,
        to_female=paths.to_female,
        faces=faces[:2],
        precision="fp16",
        profile="cpu" if job.device == "cpu" else "gpu",
        report=print,
    )
    network = load_generator(paths.to_male).network()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    graph = build_graph(network).to(job.device)
    images = [faces[index : index + 1] for index in range(PARITY_FACES)]
    with torch.inference_mode():
        answers = [
            graph(torch.from_numpy(image).to(job.device), torch.from_numpy(personas(image)).to(job.device))
            .cpu()
            .numpy()
            for image in images
        ]
    np.save(job.work / "reference.npy", np.concatenate(answers))
    job.report(flop_per_image=count_flop(generator), parameters=sum(p.numel() for p in network.parameters()))


def count_flop(architecture: Any) -> int:
    """Operations of one image, counted by torch over the network's convolutions: two per multiply and add."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from visard_export.networks.pix2pixhd import Pix2PixHDGenerator

    with torch.device("meta"), torch.inference_mode(False):
        network, image = Pix2PixHDGenerator(architecture), torch.empty(1, 3, architecture.size, architecture.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return int(counter.get_total_flops())


def variations(face: Images, count: int) -> Images:
    """Make (count, 512, 512, 3) faces out of one that differ from each other: mirrored, moved, darkened."""
    faces = [np.roll(face[:, ::-1] if k % 2 else face, 3 * k, axis=1) * (1 - 0.01 * k) for k in range(count)]
    return np.asarray(np.stack(faces), np.uint8)


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

    from visard_export.repository import WORKSPACE_BYTES

    # onnxruntime's Python takes "True" and "False" for this provider's switches and refuses "1".
    tensorrt = {
        "trt_max_workspace_size": str(WORKSPACE_BYTES),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(job.work),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(job.work),
        "trt_profile_min_shapes": _shapes(1),
        "trt_profile_opt_shapes": _shapes(max(1, max(job.batches) // 2)),
        "trt_profile_max_shapes": _shapes(max(job.batches)),
    }
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


def _shapes(batch: int) -> str:
    """The inputs' shapes as onnxruntime's TensorRT provider takes them."""
    return f"image:{batch}x512x512x3,persona:{batch}x1"


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


def run_variant(variant: Variant, job: Job, gpu: Gpu, idle_mib: float | None) -> None:
    """Measure every batch size; one that fails is reported, and larger ones are tried all the same."""
    faces, reference = np.load(job.work / "faces.npy"), np.load(job.work / "reference.npy")
    for batch in job.batches:
        runner = None
        try:
            images = np.ascontiguousarray(faces[:batch])
            runner = RUNNERS[variant.runtime](variant, job, images)
            runner.run()
            runner.wait()
            seen = runner.answer()[: len(reference)].astype(np.int16)
            difference = np.abs(seen - reference[: len(seen)])
            rate = measure(runner, job.seconds, gpu)
            used = gpu.used_mib()
            job.report(
                batch=batch,
                images_per_second=rate.batches_per_second * batch,
                ms_per_batch=1000 / rate.batches_per_second,
                joules_per_image=None if rate.joules_per_batch is None else rate.joules_per_batch / batch,
                gpu_memory_mib=None if used is None or idle_mib is None else used - idle_mib,
                mean_grey=float(difference.mean()),
                max_grey=int(difference.max()),
                note=getattr(runner, "note", ""),
            )
        except Exception as error:  # every library has its own; the reason goes into the report
            job.report(batch=batch, failed=_first_line(error))
        finally:
            del runner
            gc.collect()
            _free(job.device)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _free(device: str) -> None:
    if device == "cuda":
        import torch

        torch._dynamo.reset()
        torch.cuda.empty_cache()


def main() -> None:
    job = Job.read(Path(sys.argv[1]))
    uuid = gpu_uuid(job.device)
    gpu = Gpu(uuid)
    idle_mib = gpu.used_mib()
    if job.task == "prepare":
        prepare(job)
    elif job.task == "peaks":
        job.report(**measure_peaks(job.device, min(job.seconds, 2.0)))
    else:
        (variant,) = (variant for variant in VARIANTS if variant.name == job.task)
        run_variant(variant, job, gpu, idle_mib)


if __name__ == "__main__":
    main()
