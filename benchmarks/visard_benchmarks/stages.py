"""The speed of each stage compared with its limit on this machine, and of the SDK with the slowest stage.

    decode   `read_photo` of a JPEG           ceiling: Pillow's libjpeg alone; no decoder that keeps all pixels beats it
    detect   `FaceFinder.find`                ceiling: YuNet alone on the tiles that it is given
    align    `crop`                           ceiling: one read of the face's square and one write of the crop in memory
    wire     an identity model in Triton      ceiling: each image written once and read once in memory; gRPC and shared
    graph    classifier, generator, classifier  ceiling: their FLOPs at the rate of matrix products, on as many threads
    score    both similarities                ceiling: one read of both faces in memory
    blend    `compose`                        ceiling: one copy of the photo and one pass over the face's square

Ceilings are measured in the same run, on the same number of threads (one per core), in turns with their stages. Memory
ceilings are physical and far away on purpose: they say what the work would cost if it did nothing but touch its bytes.
The last part sends photos through `anonymize_many` and compares with the slowest stage's own rate; where the server
shares the cores with the SDK, the sum of all stages is the floor, and the rate that follows from it is printed too. A
run of `visard folder` over as many photos stands beside it.

    python -m visard_benchmarks.stages           the sample photo and the demo models
    python -m visard_benchmarks.stages --quick   a look within a minute
    python -m visard_benchmarks.stages --cpu     what photos of several sizes cost the client, in processor time

`--cpu` says how many cores of clients keep a server busy. Its limit is what no client can leave out that reads and
writes a JPEG file and finds faces with YuNet: libjpeg both ways and the network, alone. Other work on the machine only
adds to a time, so the least of some rounds counts.

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
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from visard import Client, Connection, Options
from visard.judgement import identity_distance, judge, score
from visard.pipeline import choices_of, choose, find, finish, prepare
from visard.result import FaceResult
from visard.scoring import similarity
from visard_benchmarks.align import scene_with
from visard_benchmarks.drive import IMAGE_BYTES, drive_triton
from visard_benchmarks.environment import environment
from visard_benchmarks.flops import count_flops
from visard_benchmarks.identity import MODEL, identity_models
from visard_benchmarks.peers.servers.graph import Graph, newest
from visard_benchmarks.rates import CORES, bare_graphs, per_thread, rate_of
from visard_folder import FolderJob, Settings, anonymise_folder
from visard_preprocess import DETECTOR_THRESHOLD
from visard_preprocess.align import finder
from visard_preprocess.compose import FaceSwap, compose
from visard_preprocess.detect import look_at, looks_at
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_server.embedded import SAMPLE_PHOTO, demo_models
from visard_server.triton import TritonServer

GOAL_OF_SLOWEST_STAGE = 0.9
MATRIX = 1536  # rows and columns: 7 GFLOP, and three of them outgrow the second-level cache
MANY_FACES_S = 3.0  # a face takes tens of milliseconds on the server: a shorter time would count too few
COPY_BYTES = 64 * 2**20  # outgrows the caches
OPTIONS = Options(faces="largest", identity=False)
WIDTHS = 2048, 4000, 8000  # 3, 12 and 48 megapixels
JPEG: dict[str, Any] = {"quality": 95, "subsampling": "4:4:4"}  # as photos are written


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
    square = f"float[{MATRIX}, {MATRIX}]"
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        gemm ({square} a, {square} b) => ({square} c) {{ c = MatMul(a, b) }}
    """)

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
    classifier = count_flops(newest(repository / "gender_classifier"))
    return 2 * classifier + count_flops(newest(repository / Graph(repository).generator(aligned)))


def detector_alone(pixels: NDArray[np.uint8]) -> Callable[[], None]:
    """Make the network with the tiles that `detect` gives it."""
    looks = [np.ascontiguousarray(look) for look, *_ in looks_at(pixels)]

    def run() -> None:
        for look in looks:
            look_at(look, DETECTOR_THRESHOLD)

    return run


def as_jpeg(photo: Path) -> bytes:
    """The photo's own bytes where it is a JPEG, a JPEG of it otherwise."""
    data = photo.read_bytes()
    if data[:3] == b"\xff\xd8\xff":
        return data
    buffer = BytesIO()
    Image.fromarray(read_photo(data)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class Bench:
    """One photo with a face, the servers that it goes to, and what was measured so far.

    Args:
        jpeg: the photo.
        repository: the models that `demo_url` serves.
        demo_url: host:port of a server with the models.
        identity_url: host:port of a server with the identity.
        seconds: of each measurement.
        callers: faces under way at once on the wire.

    Attributes:
        stages: by name.
        chain: photos or faces per second end to end and of the parts of it, by name, one entry per repeat.
        peaks: the machine's two, likewise.
        flops: of the graphs that the face goes through.
    """

    def __init__(
        self, jpeg: bytes, repository: Path, demo_url: str, identity_url: str, *, seconds: float, callers: int
    ) -> None:
        self.stages: dict[str, Stage] = {}
        self.chain: dict[str, list[float]] = {}
        self.peaks: dict[str, list[float]] = {"copy_gb_per_s": [], "gemm_gflops_per_s": []}
        self.prepared = prepare(jpeg, OPTIONS)
        self._aligned = self.prepared.aligned[:1]
        self.flops = graph_flops(repository, self._aligned)
        self._jpeg, self._demo_url, self._identity_url = jpeg, demo_url, identity_url
        self._seconds, self._callers = seconds, callers
        with Client(demo_url) as client:
            (self._swap,) = client.swap(self._aligned)
        self._graphs = bare_graphs(repository, self._aligned)
        self._detector = per_thread(lambda: detector_alone(self.prepared.photo))

    def measure_stages(self) -> None:
        """Measure each stage and its ceiling once."""
        jpeg, photo, quad, aligned = self._jpeg, self.prepared.photo, self.prepared.faces[0].quad, self._aligned
        faces = [FaceSwap(quad=quad, aligned=aligned[0], swapped=self._swap.swapped)]
        square_bytes = min(quad.side**2 * 3, photo.nbytes)  # of the photo under the face
        copy, gemm = copy_bytes_per_s(self._seconds), gemm_flops_per_s(self._seconds)
        self.peaks["copy_gb_per_s"].append(copy / 1e9)
        self.peaks["gemm_gflops_per_s"].append(gemm / 1e9)
        rate, note = self._rate, self._note
        note("decode", "libjpeg alone", rate(lambda: read_photo(jpeg)), rate(lambda: Image.open(BytesIO(jpeg)).load()))
        note("detect", "YuNet alone", rate(lambda: finder().find(photo)), rate(self._detector))
        # A copy reads and writes each byte, so two passes over bytes count as one byte copied.
        crop_ceiling = copy / ((square_bytes + IMAGE_BYTES) / 2)
        note("align", "memory: read square, write crop", rate(lambda: crop(photo, quad)), crop_ceiling)
        for name, shared in (("wire, gRPC", False), ("wire, shared memory", True)):
            connection = Connection(url=self._identity_url, max_in_flight=self._callers, shared_memory=shared)
            wire = drive_triton(connection, MODEL, aligned, self._callers, self._seconds).images_per_s
            note(name, "memory: image there and back", wire, copy / (2 * IMAGE_BYTES))
        note("graph", "FLOPs at the GEMM peak", rate(self._graphs), gemm / self.flops)
        scored = rate(lambda: similarity(aligned[0], self._swap.swapped))
        note("score", "memory: read both faces", scored, copy / IMAGE_BYTES)
        blended = rate(lambda: compose(photo, faces))
        note("blend", "memory: copy photo, pass over square", blended, copy / (photo.nbytes + square_bytes))

    def measure_chain(self) -> None:
        """Measure the parts of the chain once, then all of it."""
        jpeg, prepared, swap, options = self._jpeg, self.prepared, self._swap, OPTIONS
        rate, chained = self._rate, self._chained
        connection = Connection(url=self._demo_url, max_in_flight=self._callers)
        long_s = max(self._seconds, MANY_FACES_S)
        chained("before the server", rate(lambda: prepare(jpeg, options)))
        chained("server", drive_triton(connection, "anonymizer", self._aligned, self._callers, long_s).images_per_s)
        chained("after the server", rate(lambda: finish(prepared, score(prepared, [swap], options), options, {})))
        chained("anonymize_many", end_to_end(jpeg, connection, long_s))
        chained("visard folder", folder_rate(jpeg, connection, round(self.chain["anonymize_many"][-1] * long_s) + 1))

    def _rate(self, work: Callable[[], Any]) -> float:
        return rate_of(work, self._seconds)

    def _note(self, name: str, held_against: str, rate: float, ceiling: float) -> None:
        stage = self.stages.setdefault(name, Stage(name=name, ceiling=held_against))
        stage.rates.append(rate)
        stage.ceilings.append(ceiling)
        print(f"  {name:20} {rate:10.1f}/s   ceiling {ceiling:10.1f}/s   {rate / ceiling:6.1%}", flush=True)

    def _chained(self, name: str, rate: float) -> None:
        self.chain.setdefault(name, []).append(rate)
        print(f"  {name:20} {rate:10.1f}/s", flush=True)


def end_to_end(jpeg: bytes, connection: Connection, seconds: float) -> float:
    """Photos per second through the SDK."""
    done = 0
    with Client(connection) as client:
        client.anonymize(jpeg, OPTIONS)

        def photos() -> Any:
            while time.perf_counter() < stop:
                yield jpeg

        start = time.perf_counter()
        stop = start + seconds
        for outcome in client.anonymize_many(photos(), OPTIONS):
            if outcome.error is not None:
                raise outcome.error
            done += 1
        return done / (time.perf_counter() - start)


def folder_rate(jpeg: bytes, connection: Connection, photos: int) -> float:
    """Photos per second of a folder run, from an empty output folder to the manifest."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "photos"
        source.mkdir()
        for index in range(photos):
            (source / f"{index:05}.jpg").write_bytes(jpeg)
        settings = Settings(no_face="clean", identity=False)  # whatever becomes of a face, the time is that of the work
        job = FolderJob(source=source, target=Path(scratch) / "out", connections=(connection,), settings=settings)
        start = time.perf_counter()
        anonymise_folder(job)
        return photos / (time.perf_counter() - start)


def client_costs(jpeg: bytes, client: Client, rounds: int) -> dict[str, float]:
    """Processor milliseconds that one photo with all its faces takes in this process, by stage, and the limit of them.

    Args:
        jpeg: the photo.
        client: of a server with the models.
        rounds: of which the least counts.
    """
    options = Options()
    costs: dict[str, float] = {}

    def cost(stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        outcome = work(*arguments)
        costs[stage] = min(costs.get(stage, math.inf), 1000 * (time.process_time() - start))
        return outcome

    def distances_of(faces: Sequence[FaceResult]) -> list[float]:
        return [identity_distance(face.aligned, face.swapped, options) for face in faces]

    for _ in range(rounds + 1):  # the first one loads what is not counted
        photo = cost("decode", read_photo, jpeg)
        found = cost("find", find, photo, options)
        chosen = cost("align", choose, found, choices_of(found, options))
        swaps = cost("wire", client.swap, chosen.aligned, chosen.directions, chosen.personas)
        faces = cost("score", score, chosen, swaps, options)
        distances = cost("identity", distances_of, faces)
        faces = [replace(face, reason=None) for face in judge(chosen, faces, distances, options)]  # all are blended
        result = cost("blend", finish, chosen, faces, options, {})
        cost("encode", result.encode, "jpeg")
        picture = cost("libjpeg", decoded, jpeg)
        cost("YuNet", detector_alone(photo))
        cost("libjpeg's encoder", lambda picture: picture.save(BytesIO(), "JPEG", **JPEG), picture)
    limit = sum(costs.pop(stage) for stage in ("libjpeg", "YuNet", "libjpeg's encoder"))
    return {"faces": len(result.faces), **costs, "limit": limit}


def decoded(jpeg: bytes) -> Image.Image:
    """What libjpeg makes of a file."""
    picture = Image.open(BytesIO(jpeg))
    picture.load()
    return picture


def show_costs(photos: dict[str, bytes], repository: Path, rounds: int, faces_per_s: float) -> dict[str, Any]:
    """Measure the client's processor time for photos, and print the table and what it means."""
    with TritonServer(repository) as server, Client(server.grpc_url) as client:
        costs = {name: client_costs(jpeg, client, rounds) for name, jpeg in photos.items()}
    table = Table(title=f"processor milliseconds of the client, and its cores for a server of {faces_per_s:g} faces/s")
    rows = []
    for name, cost in costs.items():
        stages = {stage: value for stage, value in cost.items() if stage not in ("faces", "limit")}
        photo_ms, faces = sum(stages.values()), cost["faces"]
        cores, least = (faces_per_s * ms / faces / 1000 for ms in (photo_ms, cost["limit"]))
        figures = {**stages, "photo": photo_ms, "a face": photo_ms / faces, "limit of the photo": cost["limit"]}
        rows.append({"": name, "faces": f"{faces:g}", **{key: f"{value:.1f}" for key, value in figures.items()}})
        rows[-1] |= {"cores": f"{cores:.0f}", "limit of the cores": f"{least:.0f}"}
    for heading in rows[0]:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row.values())
    Console(width=200).print(table)
    return {name: {stage: round(value, 2) for stage, value in cost.items()} for name, cost in costs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path, default=SAMPLE_PHOTO, help="a photo with a face in it")
    parser.add_argument("--models", type=Path, help="model repository; the demo models by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="how often all take turns (default 3)")
    parser.add_argument("--in-flight", type=int, default=8, help="faces under way at once on the wire (default 8)")
    parser.add_argument("--quick", action="store_true", help="one repeat of half a second each")
    parser.add_argument(
        "--cpu", type=Path, nargs="*", metavar="PHOTO", help="only the client's processor time; for these photos, too"
    )
    parser.add_argument("--faces-per-s", type=float, default=600.0, help="of the server in --cpu (default 600)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.repeats = min(arguments.seconds, 0.5), 1

    machine = environment()
    repository = arguments.models or demo_models()
    if arguments.cpu is not None:
        sample = read_photo(arguments.photo)
        photos = {arguments.photo.name: as_jpeg(arguments.photo)}
        photos |= {f"{width} pixels wide": scene_with(sample, finder(), width) for width in WIDTHS}
        photos |= {path.name: as_jpeg(path) for path in arguments.cpu}
        costs = show_costs(photos, repository, arguments.repeats, arguments.faces_per_s)
        print(json.dumps({"milliseconds": costs, "environment": machine}))
        return
    with tempfile.TemporaryDirectory() as folder:
        _, identities = identity_models(Path(folder))
        with TritonServer(repository) as demo, TritonServer(identities, shared_memory=True) as identity:
            how = {"seconds": arguments.seconds, "callers": arguments.in_flight}
            bench = Bench(as_jpeg(arguments.photo), repository, demo.grpc_url, identity.grpc_url, **how)
            for repeat in range(arguments.repeats):
                print(f"repeat {repeat + 1}/{arguments.repeats}", flush=True)
                bench.measure_stages()
                bench.measure_chain()
    show(bench)
    print(json.dumps({**summary(bench), "environment": machine}))


def summary(bench: Bench) -> dict[str, Any]:
    """The figures by which runs are compared, medians of the repeats."""
    peaks = {name: round(statistics.median(values), 2) for name, values in bench.peaks.items()}
    chain = {name: round(statistics.median(rates), 2) for name, rates in bench.chain.items()}
    whole, folder_run = chain.pop("anonymize_many"), chain.pop("visard folder")
    slowest, together = ceiling_of_stages(list(chain.values()))
    return {
        "stages": {
            stage.name: {
                "per_s": round(stage.rate, 2),
                "ceiling_per_s": round(statistics.median(stage.ceilings), 2),
                "share": round(stage.share, 4),
                "ceiling": stage.ceiling,
            }
            for stage in bench.stages.values()
        },
        "peaks": peaks,
        "flops_per_face": bench.flops,
        "chain_per_s": chain,
        "anonymize_many_per_s": whole,
        "folder_per_s": folder_run,
        "of_slowest_stage": round(whole / slowest, 4),
        "of_shared_cores": round(whole / together, 4),
    }


def show(bench: Bench) -> None:
    """Print the table and what it means."""
    found = summary(bench)
    height, width = bench.prepared.photo.shape[:2]
    table = Table(title=f"{width}×{height} photo, {bench.flops / 1e9:.2f} GFLOP per face, {CORES} cores")
    for heading in ("stage", "per second", "ceiling", "share", "held against"):
        table.add_column(heading, justify="left" if heading in ("stage", "held against") else "right")
    for name, stage in found["stages"].items():
        rates = f"{stage['per_s']:,.1f}", f"{stage['ceiling_per_s']:,.1f}", f"{stage['share']:.1%}"
        table.add_row(name, *rates, stage["ceiling"])
    Console(width=120).print(table)
    whole, folder_run, share = found["anonymize_many_per_s"], found["folder_per_s"], found["of_slowest_stage"]
    verdict = "met" if share >= GOAL_OF_SLOWEST_STAGE else "missed"
    print(f"memory {found['peaks']['copy_gb_per_s']:.1f} GB/s copied", end="   ")
    print(f"matrix products {found['peaks']['gemm_gflops_per_s']:.0f} GFLOP/s")
    print("   ".join(f"{name} {rate:.1f}/s" for name, rate in found["chain_per_s"].items()))
    print(f"anonymize_many {whole:.1f}/s: {share:.1%} of the slowest stage's own rate (goal 90 %: {verdict})")
    shared = found["of_shared_cores"]
    print(f"stages that share the cores could reach {whole / shared:.1f}/s together: {shared:.1%} of it")
    print(f"visard folder {folder_run:.1f}/s: {folder_run / whole:.1%} of anonymize_many, which writes nothing")


if __name__ == "__main__":
    main()
