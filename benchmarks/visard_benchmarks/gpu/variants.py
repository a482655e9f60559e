"""The ways to run the generator, and what one process is to do with one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from visard_benchmarks.gpu.reports import append


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

    @property
    def onnx(self) -> Path:
        """The generator's graph in mixed FP16, as the export wrote it."""
        return self.work / "model.onnx"

    def report(self, **line: Any) -> None:
        """Append a result."""
        append(self.out, line)
