"""NVIDIA's perf_analyzer as a witness from outside: the same server and face, measured by somebody else's program.

It is fetched from the wheel of an older client package, into a folder that the caller names, and runs with libraries of
the embedded server's wheel. It knows nothing about our client: what it measures is the server and the wire.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHEEL = "tritonclient==2.47.0"  # newer ones come without the program
_MEMBER = "tritonclient-2.47.0.data/data/bin/perf_analyzer"
_LIBRARIES = ("libb64.so.0d", "libcudart.so.12")  # what it needs → hashed names in the server's wheel
_TIMEOUT_S = 300
_STABILITY_PERCENT = 10, 999  # its rule for three windows; where they do not agree, their mean all the same


class NoPerfAnalyzer(Exception):
    """The program cannot be had or does not work here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What perf_analyzer measured with so many requests under way; `stable` by its own rule."""

    callers: int
    per_s: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    stable: bool

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def find_perf_analyzer(folder: Path) -> Path:
    """Find the program in `folder`; the first call downloads it there with pip (12 MB).

    Raises:
        NoPerfAnalyzer: it cannot be downloaded, or the embedded server is not installed.
    """
    program = folder / "perf_analyzer"
    if not program.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, _WHEEL]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoPerfAnalyzer(
                    f"pip cannot download {_WHEEL}: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
                )
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                unpacked = Path(archive.extract(_MEMBER, scratch))
            unpacked.chmod(0o755)
            unpacked.rename(program)
    _link_libraries(folder)
    return program


def run_perf_analyzer(
    program: Path,
    url: str,
    image: NDArray[np.uint8],
    *,
    callers: int,
    window_s: float,
    headers: Mapping[str, str],
    model: str = "anonymizer",
    shared_memory: bool = False,
) -> Witness:
    """Let it send `image` in a closed loop until its own stability rule (three windows within 10 %) holds.

    Args:
        program: from `find_perf_analyzer`.
        url: host:port of the server's gRPC endpoint.
        image: (512, 512, 3) uint8; it lies in the temporary directory while the program runs.
        callers: requests under way.
        window_s: length of its windows.
        headers: open the statistics, which it insists on reading.
        model: what to ask for.
        shared_memory: hand tensors over in shared memory.

    Raises:
        NoPerfAnalyzer: it failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        data, report = Path(scratch, "input.json"), Path(scratch, "report.csv")
        content = {"b64": base64.b64encode(image.tobytes()).decode()}
        data.write_text(json.dumps({"data": [{"image": content, "persona": [0]}]}))
        command = [str(program), "-m", model, "-i", "grpc", "-u", url, "--input-data", str(data)]
        command += ["--concurrency-range", str(callers), "--measurement-interval", str(round(window_s * 1000))]
        command += ["--max-trials", "5"]
        command += ["-f", str(report)]
        for name, value in headers.items():
            command += ["-H", f"{name}:{value}"]
        if shared_memory:
            command += ["--shared-memory", "system", "--output-shared-memory-size", str(1 << 20)]
        for percent in _STABILITY_PERCENT:  # it reports nothing where its rule does not hold
            words = _run(program, [*command, "--stability-percentage", str(percent)])
            if report.is_file():
                return parse_report(report.read_text(), stable=percent == _STABILITY_PERCENT[0])
    raise NoPerfAnalyzer(f"perf_analyzer failed: {words}")


def _run(program: Path, command: list[str]) -> str:
    """Run it; returns its last words."""
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{program.parent}{os.pathsep}{_wheel_libraries()}"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NoPerfAnalyzer(f"perf_analyzer did not end within {_TIMEOUT_S} s") from None
    words = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return words[-1] if words else "it said nothing"


def parse_report(text: str, *, stable: bool) -> Witness:
    """Read the one line of its CSV report; latencies there are microseconds."""
    (row,) = csv.DictReader(text.splitlines())
    latencies = {f"{name}_ms": float(row[f"{name} latency"]) / 1000 for name in ("p50", "p90", "p95", "p99")}
    return Witness(callers=int(row["Concurrency"]), per_s=float(row["Inferences/Second"]), stable=stable, **latencies)


def _wheel_libraries() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise NoPerfAnalyzer("its libraries come with the embedded server: pip install 'visard[serve]'")
    return Path(spec.origin).parents[1] / "nvidia_pytriton.libs"


def _link_libraries(folder: Path) -> None:
    """Give the server wheel's libraries the names that the program asks for."""
    for name in _LIBRARIES:
        stem, _, suffix = name.partition(".")
        found = sorted(_wheel_libraries().glob(f"{stem}-*.{suffix}*"))
        if not found:
            raise NoPerfAnalyzer(f"the embedded server's wheel has no {name}")
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(found[0])
