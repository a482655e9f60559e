"""Each stage alone beside its ceiling on this machine, and the SDK end to end beside the slowest of them.

    decode   `read_photo` of a JPEG           ceiling: Pillow's libjpeg alone; no decoder that keeps all pixels beats it
    detect   `FaceFinder.find`                ceiling: dlib's detector alone on the copy that it is given
    align    `crop`                           ceiling: one read of the face's square and one write of the crop in memory
    wire     an identity model in Triton      ceiling: each image written once and read once in memory; gRPC and shared
    graph    classifier, generator, classifier  ceiling: their FLOPs at the rate of matrix products, on as many threads
    score    both similarities                ceiling: one read of both faces in memory
    blend    `compose`                        ceiling: one copy of the photo and one pass over the face's square

Ceilings are measured in the same run, on the same number of threads (one per core), in turns with their stages. Memory
ceilings are physical and far away on purpose: they say what the work would cost if it did nothing but touch its bytes.
The last part sends photos through `anonymize_many` and compares with the slowest stage's own rate; where the server
shares the cores with the SDK, the sum of all stages is the floor, and the rate that follows from it is printed too.

    python -m visard_benchmarks.stages           the sample photo and the demo models
    python -m visard_benchmarks.stages --quick   a look within a minute

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import dlib
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from rich.console import Console
from rich.table import Table

from visard import Client, Connection, Options, Swap
from visard.pipeline import finish, prepare
from visard.scoring import similarity
from visard_benchmarks.drive import drive_triton
from visard_benchmarks.environment import environment
from visard_benchmarks.flops import count_flops
from visard_benchmarks.identity import MODEL, identity_models
from visard_benchmarks.peers.servers.graph import Graph, newest
from visard_benchmarks.rates import CORES, bare_graphs, per_thread, rate_of
from visard_preprocess.align import finder
from visard_preprocess.compose import FaceSwap, compose
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_server.embedded import SAMPLE_PHOTO, demo_models
from visard_server.triton import TritonServer

IMAGE_BYTES = 512 * 512 * 3
GOAL_OF_SLOWEST_STAGE = 0.9
MATRIX = 1536  # rows and columns: 7 GFLOP, and three of them outgrow the second-level cache
MANY_FACES_S = 3.0  # a face takes tens of milliseconds on the server: a shorter time would count too few
COPY_BYTES = 64 * 2**20  # outgrows the caches


@dataclass(kw_only=True)
class Stage:
    """A stage, its ceiling, and what was measured of both.

    Attributes:
        ceiling: what it is held against, in words.
        rates: photos or faces per second, one per repeat.
        ceilings: the same of the ceiling.
    """

    name: str
    ceiling: str
    rates: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median per second."""
        return statistics.median(self.rates)

    @property
    def share(self) -> float:
        """Median over the repeats of rate by ceiling."""
        return statistics.median(rate / ceiling for rate, ceiling in zip(self.rates, self.ceilings, strict=True))


def copy_bytes_per_s(seconds: float) -> float:
    """Bytes per second that all cores together copy from memory to memory: one read and one write of each."""

    def make() -> Callable[[], Any]:
        source, target = np.ones(COPY_BYTES, np.uint8), np.ones(COPY_BYTES, np.uint8)
        return lambda: np.copyto(target, source)

    return rate_of(per_thread(make), seconds) * COPY_BYTES


def gemm_flops_per_s(seconds: float) -> float:
    """FLOPs per second of large float32 matrix products in onnxruntime, a thread and a session per core."""
    square = [MATRIX, MATRIX]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, square) for name in ("a", "b")],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, square)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)

    def make() -> Callable[[], Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        values = np.random.default_rng(0).random((MATRIX, MATRIX), np.float32)
        return lambda: session.run(None, {"a": values, "b": values})

    return rate_of(per_thread(make), seconds) * 2 * MATRIX**3


def ceiling_of_stages(rates: Sequence[float]) -> tuple[float, float]:
    """Two ceilings of a chain: its slowest stage, and what stages that share all cores can reach together.

    Args:
        rates: per second, each alone on all cores.

    Returns:
        The least of them, and 1 / the sum of their times.
    """
    return min(rates), 1 / sum(1 / rate for rate in rates)


def graph_flops(repository: Path, aligned: NDArray[np.uint8]) -> int:
    """FLOPs of the graphs that one face, (1, 512, 512, 3) uint8, goes through: classifier, generator, classifier."""
    graph = Graph(repository)
    classifier = count_flops(newest(repository / "gender_classifier"))
    return 2 * classifier + count_flops(newest(repository / graph.generator(aligned)))


class Work:
    """The stages' work on one photo, and that of their ceilings; every method is called on many threads at once."""

    def __init__(self, photo: Path, repository: Path) -> None:
        self.jpeg = _as_jpeg(photo)
        self.prepared = prepare(self.jpeg, Options(faces="largest"))
        self.pixels = self.prepared.photo
        self.face = self.prepared.faces[0]
        self.aligned = self.prepared.aligned[0]
        self.flops = graph_flops(repository, self.prepared.aligned[:1])
        self.graphs = bare_graphs(repository, self.prepared.aligned[:1])
        self.detector_alone = per_thread(self._make_detector)
        self.swap: Swap | None = None

    def decode(self) -> None:
        """Decode as the SDK does."""
        read_photo(self.jpeg)

    def decode_alone(self) -> None:
        """Decode and nothing else."""
        Image.open(BytesIO(self.jpeg)).load()

    def detect(self) -> None:
        """Find the faces."""
        finder().find(self.pixels)

    def align(self) -> None:
        """Cut the face out."""
        crop(self.pixels, self.face.quad)

    def score(self) -> None:
        """Compare the two faces."""
        similarity(self.aligned, self.swapped)

    def blend(self) -> None:
        """Put the face back."""
        compose(self.pixels, [FaceSwap(quad=self.face.quad, aligned=self.aligned, swapped=self.swapped)])

    def before_server(self) -> None:
        """Everything up to the server."""
        prepare(self.jpeg, Options(faces="largest"))

    def after_server(self) -> None:
        """Everything after it."""
        assert self.swap is not None
        finish(self.prepared, [self.swap], Options(faces="largest"))

    @property
    def swapped(self) -> NDArray[np.uint8]:
        """The face as the server returned it."""
        assert self.swap is not None
        return self.swap.swapped

    @property
    def square_bytes(self) -> float:
        """Bytes of the photo under the face's square."""
        return min(self.face.quad.side**2 * 3, self.pixels.nbytes)

    def _make_detector(self) -> Callable[[], None]:
        """Make dlib's detector with a copy of the size that `FaceFinder` gives it."""
        from visard_preprocess.align import _HOG_MIN_SCALE, _HOG_PIXELS, _MAX_SCALE

        detector = dlib.get_frontal_face_detector()
        grey = Image.fromarray(self.pixels).convert("L")
        scale = max(_HOG_MIN_SCALE, min(_MAX_SCALE, math.sqrt(_HOG_PIXELS / (grey.width * grey.height))))
        size = max(1, round(grey.width * scale)), max(1, round(grey.height * scale))
        copy = np.asarray(grey.resize(size, Image.Resampling.BILINEAR))

        def run() -> None:
            detector.run(copy, 0, 0.0)

        return run


def _as_jpeg(photo: Path) -> bytes:
    """The photo's own bytes where it is a JPEG, a JPEG of it otherwise."""
    data = photo.read_bytes()
    if data[:3] == b"\xff\xd8\xff":
        return data
    buffer = BytesIO()
    Image.fromarray(read_photo(data)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def measure(
    work: Work, demo: TritonServer, identity: TritonServer, seconds: float, repeats: int, in_flight: int
) -> Any:
    """Measure stages, ceilings and the whole in turns.

    Returns:
        Stages by name, end-to-end and chain rates by name with one entry per repeat, and the machine's two peaks.
    """
    stages = {
        name: Stage(name=name, ceiling=ceiling)
        for name, ceiling in {
            "decode": "libjpeg alone",
            "detect": "dlib's detector alone",
            "align": "memory: read square, write crop",
            "wire, gRPC": "memory: image there and back",
            "wire, shared memory": "memory: image there and back",
            "graph": "FLOPs at the GEMM peak",
            "score": "memory: read both faces",
            "blend": "memory: copy photo, pass over square",
        }.items()
    }
    chain: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {"copy_gb_per_s": [], "gemm_gflops_per_s": []}

    def note(name: str, rate: float, ceiling: float) -> None:
        stages[name].rates.append(rate)
        stages[name].ceilings.append(ceiling)
        print(f"  {name:20} {rate:10.1f}/s   ceiling {ceiling:10.1f}/s   {rate / ceiling:6.1%}", flush=True)

    def chained(name: str, rate: float) -> None:
        chain.setdefault(name, []).append(rate)
        print(f"  {name:20} {rate:10.1f}/s", flush=True)

    with Client(demo.grpc_url) as client:
        (work.swap,) = client.swap(work.aligned)
    for repeat in range(repeats):
        print(f"repeat {repeat + 1}/{repeats}", flush=True)
        copy = copy_bytes_per_s(seconds)
        gemm = gemm_flops_per_s(seconds)
        peaks["copy_gb_per_s"].append(copy / 1e9)
        peaks["gemm_gflops_per_s"].append(gemm / 1e9)
        note("decode", rate_of(work.decode, seconds), rate_of(work.decode_alone, seconds))
        note("detect", rate_of(work.detect, seconds), rate_of(work.detector_alone, seconds))
        # A copy reads and writes each byte, so two passes over bytes count as one byte copied.
        note("align", rate_of(work.align, seconds), copy / ((work.square_bytes + IMAGE_BYTES) / 2))
        for name, shared in (("wire, gRPC", False), ("wire, shared memory", True)):
            connection = Connection(url=identity.grpc_url, max_in_flight=in_flight, shared_memory=shared)
            load = drive_triton(connection, MODEL, work.prepared.aligned[:1], in_flight, seconds)
            note(name, load.images_per_s, copy / (2 * IMAGE_BYTES))
        note("graph", rate_of(work.graphs, seconds), gemm / work.flops)
        note("score", rate_of(work.score, seconds), copy / IMAGE_BYTES)
        note("blend", rate_of(work.blend, seconds), copy / (work.pixels.nbytes + work.square_bytes))

        chained("before the server", rate_of(work.before_server, seconds))
        connection = Connection(url=demo.grpc_url, max_in_flight=in_flight)
        image, long_s = work.prepared.aligned[:1], max(seconds, MANY_FACES_S)
        chained("server", drive_triton(connection, "anonymizer", image, in_flight, long_s).images_per_s)
        chained("after the server", rate_of(work.after_server, seconds))
        chained("anonymize_many", end_to_end(work.jpeg, connection, seconds))
    return stages, chain, peaks


def end_to_end(jpeg: bytes, connection: Connection, seconds: float) -> float:
    """Photos per second through the SDK."""
    done = 0
    with Client(connection) as client:
        client.anonymize(jpeg, Options(faces="largest"))

        def photos() -> Any:
            while time.perf_counter() < stop:
                yield jpeg

        start = time.perf_counter()
        stop = start + max(seconds, MANY_FACES_S)
        for outcome in client.anonymize_many(photos(), Options(faces="largest")):
            if outcome.error is not None:
                raise outcome.error
            done += 1
        return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path, default=SAMPLE_PHOTO, help="a photo with a face in it")
    parser.add_argument("--models", type=Path, help="model repository; the demo models by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="how often all take turns (default 3)")
    parser.add_argument("--in-flight", type=int, default=8, help="faces under way at once on the wire (default 8)")
    parser.add_argument("--quick", action="store_true", help="one repeat of half a second each")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.repeats = min(arguments.seconds, 0.5), 1

    machine = environment()
    repository = arguments.models or demo_models()
    work = Work(arguments.photo, repository)
    with tempfile.TemporaryDirectory() as folder:
        _, identity_repository = identity_models(Path(folder))
        with TritonServer(repository) as demo, TritonServer(identity_repository, shared_memory=True) as identity:
            stages, chain, peaks = measure(
                work, demo, identity, arguments.seconds, arguments.repeats, arguments.in_flight
            )

    height, width = work.pixels.shape[:2]
    table = Table(title=f"{width}×{height} photo, {work.flops / 1e9:.2f} GFLOP per face, {CORES} cores")
    for heading in ("stage", "per second", "ceiling", "share", "held against"):
        table.add_column(heading, justify="left" if heading in ("stage", "held against") else "right")
    for stage in stages.values():
        ceiling = statistics.median(stage.ceilings)
        table.add_row(stage.name, f"{stage.rate:,.1f}", f"{ceiling:,.1f}", f"{stage.share:.1%}", stage.ceiling)
    Console(width=120).print(table)

    medians = {name: statistics.median(rates) for name, rates in chain.items()}
    whole = medians.pop("anonymize_many")
    slowest, together = ceiling_of_stages(list(medians.values()))
    verdict = "met" if whole / slowest >= GOAL_OF_SLOWEST_STAGE else "missed"
    print(f"memory {statistics.median(peaks['copy_gb_per_s']):.1f} GB/s copied", end="   ")
    print(f"matrix products {statistics.median(peaks['gemm_gflops_per_s']):.0f} GFLOP/s")
    print("   ".join(f"{name} {rate:.1f}/s" for name, rate in medians.items()))
    print(f"anonymize_many {whole:.1f}/s: {whole / slowest:.1%} of the slowest stage's own rate (goal 90 %: {verdict})")
    print(f"stages that share the cores could reach {together:.1f}/s together: {whole / together:.1%} of it")
    print(
        json.dumps(
            {
                "stages": {
                    stage.name: {
                        "per_s": round(stage.rate, 2),
                        "ceiling_per_s": round(statistics.median(stage.ceilings), 2),
                        "share": round(stage.share, 4),
                        "ceiling": stage.ceiling,
                    }
                    for stage in stages.values()
                },
                "peaks": {name: round(statistics.median(values), 2) for name, values in peaks.items()},
                "flops_per_face": work.flops,
                "chain_per_s": {name: round(rate, 2) for name, rate in medians.items()},
                "anonymize_many_per_s": round(whole, 2),
                "of_slowest_stage": round(whole / slowest, 4),
                "of_shared_cores": round(whole / together, 4),
                "environment": machine,
            }
        )
    )


if __name__ == "__main__":
    main()
