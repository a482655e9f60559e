"""The options of an export. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import Doc

Precision = Literal["fp32", "fp16"]
Profile = Literal["cpu", "gpu", "tensorrt"]
Shape = Literal["auto", "fused", "routed"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is made of checkpoints. The profile `gpu` is onnxruntime with TensorRT inside."""

    precision: Annotated[Precision, Doc("fp16 keeps instance norm statistics in float32.")] = "fp32"
    profile: Annotated[
        Profile, Doc("Where it will be served; 'tensorrt' builds engines for the GPU of this machine, now.")
    ] = "cpu"
    shape: Annotated[
        Shape,
        Doc(
            "How a face of unknown direction is served. fused: judged, swapped and judged again in one graph, which "
            "computes both generators unless they are one persona generator; routed: a router sends it to one of two. "
            "auto: fused for a persona generator."
        ),
    ] = "auto"
    encoded: Annotated[bool, Doc("Also let faces travel as JPEG; Triton's Python needs Pillow then.")] = False
