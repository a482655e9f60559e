"""What comes back through a server from callers in four processes, against the same network without any server.

`routed`: the caller says which direction, and each direction is a model with batches of its own: generator, then the
classifier's judgement. `fused`: one model classifies, finds each face's direction itself, draws and judges.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

import checkout
from callers import Callers, Transport
from engine import Engine, Settings
from figures import Figures
from networks import Model, faces
from offline import fastest
from triton_server import ECHO, SEGMENTS, Server, serving
from visard_benchmarks.gpu.meters import measure
from visard_export.networks.atlas import DIRECTIONS

Shape = Literal["routed", "fused"]

# In the order of their worth. A full-size generator is served routed alone: fused would draw both directions.
SHAPES: tuple[tuple[Shape, Model], ...] = (("routed", "full"), ("fused", "demo"), ("routed", "demo"))
FUSED = "anonymizer"
PROCESSES = 4
INSTANCES = 2  # of each model: one copies while the other computes
FEMALE = 0  # column of the probabilities


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What differs between a GPU and a dry run."""

    under_way: tuple[int, ...]
    faces: int
    shapes: tuple[tuple[Shape, Model], ...]
    batches: dict[Model, tuple[int, ...]]
    instances: int
    offline_s: float
    warm_s: float
    seconds: float


ON_GPU = Sizes(
    under_way=(128, 64),
    faces=12,
    shapes=SHAPES,
    batches={"full": (1, 4, 16), "demo": (1, 4, 16, 64)},
    instances=INSTANCES,
    offline_s=1.0,
    warm_s=2.0,
    seconds=4.0,
)
DRY = Sizes(
    under_way=(4,),
    faces=2,
    shapes=SHAPES[:2],
    batches={"full": (1, 2), "demo": (1, 2)},
    instances=1,
    offline_s=0.0,
    warm_s=0.2,
    seconds=0.5,
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A served shape, and what its answers must be.

    Attributes:
        settings: of its models, by name; None is the echo.
        outputs: that are asked for.
        faces: per model, which faces are sent in both directions at once.
        one_way: the same for one direction alone; empty where the faces have but one.
        images: file with the faces.
        expected: files with the answers of each model, computed without a server.
        offline: faces per second of one model without a server, at its largest batch.
    """

    settings: dict[str, Settings | None]
    outputs: list[str]
    faces: dict[str, list[int]]
    one_way: dict[str, list[int]]
    images: Path
    expected: dict[str, str]
    offline: float


def served(figures: Figures, device: str, dry: bool, bundle: Path | None) -> None:
    """Every shape: both directions and one, 128 and 64 faces under way."""
    sizes = DRY if dry else ON_GPU
    for shape, model in sizes.shapes:
        which: dict[str, Any] = {"shape": shape, "model": model}
        try:
            with _work(figures, shape, model, device, sizes) as work:
                if len(work.one_way) == 0:
                    figures.add(**which, failed="all faces are judged to be of one gender: no mixed directions")
                with serving(work.settings, bundle, sizes.instances, figures.until) as server:
                    for directions, sent in (("both", work.faces), ("one", work.one_way)):
                        for under_way in sizes.under_way if sent else ():
                            case = {**which, "directions": directions, "under_way": under_way}
                            alone = sent is work.faces and under_way == sizes.under_way[0]
                            with suppress_as_line(figures, case):
                                _load(figures, case, work, sent, server, sizes, alone=alone)
        except Exception as error:  # whatever a server can die of; the next shape may live
            figures.failed(error, **which)


def wire(figures: Figures, device: str, dry: bool, bundle: Path | None) -> None:
    """The fused shape, and an echo as the limit of the way alone, with the pixels in shared memory and in messages."""
    sizes = DRY if dry else ON_GPU
    with _work(figures, "fused", "demo", device, sizes) as work:
        settings: dict[str, Settings | None] = {**work.settings, ECHO: None}
        with serving(settings, bundle, sizes.instances, figures.until) as server:
            for model, transport in itertools.product((FUSED, ECHO), get_args(Transport)):
                case = {"model": model, "transport": transport, "under_way": sizes.under_way[-1]}
                with suppress_as_line(figures, case):
                    sent = {model: work.faces[FUSED]}
                    _load(figures, case, work, sent, server, sizes, alone=True, transport=transport)


@contextmanager
def suppress_as_line(figures: Figures, case: dict[str, Any]) -> Iterator[None]:
    """Write what a case dies of, and go on."""
    try:
        yield
    except Exception as error:  # see above
        figures.failed(error, **case)


@contextmanager
def _work(figures: Figures, shape: Shape, model: Model, device: str, sizes: Sizes) -> Iterator[Work]:
    """Compute what a shape must answer, and how fast it is without a server."""
    norm, layout = fastest(figures, model)
    images, what = faces()
    images = images[: sizes.faces]
    personas = torch.split(torch.arange(len(images), dtype=torch.int32)[:, None], 1)
    directions = DIRECTIONS if shape == "routed" else (None,)
    settings: dict[str, Settings | None] = {}
    expected: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "faces.npy", images)
        np.save(folder / "echo.npy", images)
        expected[ECHO] = str(folder / "echo.npy")
        for direction in directions:
            name = FUSED if direction is None else f"{FUSED}_{direction}"
            batches = sizes.batches[model]
            settings[name] = each = Settings(
                model=model,
                direction=direction,
                norm=norm,
                layout=layout,
                sizes=batches,
                device=device,
                tiny=device == "cpu",
            )
            engine = Engine(each)
            answers = [
                [output.numpy().copy() for output in engine.run([image], [persona])[0]]
                for image, persona in zip(torch.split(torch.from_numpy(images), 1), personas, strict=True)
            ]
            expected[name] = str(folder / f"{name}.npy")
            np.save(folder / f"{name}.npy", np.concatenate([answer[0] for answer in answers]))
            outputs = list(engine.outputs)
            rate = measure(engine.replay(batches[-1]), sizes.offline_s).batches_per_second * batches[-1]
            del engine
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        figures.add(
            shape=shape,
            model=model,
            offline_faces_per_second=rate,
            faces=what,
            norm=norm,
            layout=layout,
            batches=batches,
        )
        everyone = list(range(len(images)))
        if shape == "routed":
            sent = dict.fromkeys(settings, everyone)
            one_way = {f"{FUSED}_{DIRECTIONS[0]}": everyone}
        else:
            both, one = _by_gender(answers)
            sent, one_way = {FUSED: both}, {FUSED: one} if one else {}
        yield Work(
            settings=settings,
            outputs=outputs,
            faces=sent,
            one_way=one_way,
            images=folder / "faces.npy",
            expected=expected,
            offline=rate,
        )


def _by_gender(answers: list[list[Any]]) -> tuple[list[int], list[int]]:
    """Order faces so that genders alternate, as many of each; and those of the first alone.

    Where all are judged alike: all of them, and nothing.
    """
    women = [index for index, answer in enumerate(answers) if answer[1][0].argmax() == FEMALE]
    men = [index for index in range(len(answers)) if index not in women]
    if not women or not men:
        return list(range(len(answers))), []
    count = min(len(women), len(men))
    return [face for pair in zip(women[:count], men[:count], strict=True) for face in pair], women


def _load(
    figures: Figures,
    case: dict[str, Any],
    work: Work,
    sent: dict[str, list[int]],
    server: Server,
    sizes: Sizes,
    *,
    alone: bool,
    transport: Transport = "HTTP",
) -> None:
    """Load the server from some processes and write what came back."""
    if not figures.has_time(sizes.warm_s + sizes.seconds + 3, **case):
        return
    port = server.grpc_port if transport == "gRPC" else server.port
    if port is None:
        raise ValueError("the plain server speaks no gRPC")
    if transport == "gRPC" and importlib.util.find_spec("grpc") is None:
        raise ValueError("gRPC needs grpcio, which is not here")
    is_echo = list(sent) == [ECHO]
    loads = [
        Callers(
            transport=transport,
            port=port,
            outputs=["swapped"] if is_echo else work.outputs,
            models=list(sent),
            faces=sent,
            images=str(work.images),
            expected={model: work.expected[model] for model in sent},
            callers=case["under_way"] // PROCESSES,
            segment=f"{SEGMENTS}{secrets.token_hex(4)}" if transport == "shared memory" else "",
            alone=alone and number == 0,
            warm_s=sizes.warm_s,
            seconds=sizes.seconds,
        )
        for number in range(PROCESSES)
    ]
    command = [sys.executable, str(checkout.HERE / "callers.py")]
    processes = [
        subprocess.Popen([*command, load.to_json()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for load in loads
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise ChildProcessError("callers could not reach the server: see this part's log")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        time.sleep(sizes.warm_s)
        before = cpu_seconds(server.pid)
        with gpu_use() as gpu:
            time.sleep(sizes.seconds)
        after = cpu_seconds(server.pid)
        seen = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    figures.add(**case, server=server.name, **_sum_up(seen, sizes, work.offline, is_echo, before, after), **gpu)


def _sum_up(
    seen: list[dict[str, Any]],
    sizes: Sizes,
    offline: float,
    is_echo: bool,
    before: dict[str, float],
    after: dict[str, float],
) -> dict[str, Any]:
    warm = [
        (ended, 1000 * took)
        for one in seen
        for ended, took in zip(one["ended"], one["took"], strict=True)
        if ended >= sizes.warm_s
    ]
    # A machine that is slow enough gives its first answer later.
    end = max(sizes.warm_s + sizes.seconds, min(ended for ended, _ in warm))
    took = [ms for ended, ms in warm if ended <= end]
    rate = len(took) / (end - sizes.warm_s)
    answers = sum(len(one["ended"]) for one in seen)
    alone = seen[0]["alone"]
    cpu = {name: 1000 * (used - before.get(name, 0.0)) / len(took) for name, used in after.items()}
    cpu["callers"] = 1000 * sum(one["cpu_s"] for one in seen) / answers
    return {
        "faces_per_second": rate,
        "served_over_offline": None if is_echo else rate / offline,
        "p50_ms": float(np.percentile(took, 50)),
        "p99_ms": float(np.percentile(took, 99)),
        "answers": len(took),
        "cpu_ms_per_face": cpu,
        **({"alone": {"equal": alone[0], "answers": alone[1]}} if alone else {}),
        "under_load": {
            "equal": sum(one["equal"] for one in seen),
            "answers": sum(one["checked"] for one in seen),
            "largest_difference": max(one["largest_difference"] for one in seen),
        },
    }


def cpu_seconds(pid: int) -> dict[str, float]:
    """Processor time so far of a process and all that it started, by what they are."""
    parents, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            parents[int(folder.name)] = int(fields[1])
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            model = next((Path(word).parents[1].name for word in command if word.endswith("/1/model.py")), "")
            ticks = int(fields[11]) + int(fields[12])
            used[int(folder.name)] = (f"model {model}" if model else name, ticks / os.sysconf("SC_CLK_TCK"))
    family: set[int] = set()
    found = {pid}
    while found:
        family |= found
        found = {child for child, parent in parents.items() if parent in family} - family
    total: dict[str, float] = {}
    for member in family & used.keys():
        name, seconds = used[member]
        total[name] = total.get(name, 0.0) + seconds
    return total


@contextmanager
def gpu_use() -> Iterator[dict[str, Any]]:
    """Mean use and power of the first GPU in the block, from nvidia-smi; filled when the block ends."""
    use: dict[str, Any] = {"gpu_use_percent": None, "gpu_watts": None}
    query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen([*query, "--loop-ms=200"], stdout=subprocess.PIPE, text=True)
    except OSError:  # no such program
        yield use
        return
    try:
        yield use
    finally:
        process.terminate()
        rows = [line.split(",") for line in process.communicate()[0].splitlines()]
    for column, name in enumerate(use):
        values = []
        for row in rows:
            with suppress(ValueError, IndexError):  # "[N/A]"
                values.append(float(row[column]))
        use[name] = float(np.mean(values)) if values else None


PARTS: dict[str, Callable[[Figures, str, bool, Path | None], None]] = {"served": served, "wire": wire}
