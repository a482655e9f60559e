"""Starts Triton from a bundle of `make_bundle.py`, or the plain server where there is none."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import checkout
from engine import Settings
from visard_benchmarks.gpu.reports import reason

ECHO = "echo"
MAX_ECHO = 64
SEGMENTS = Path(tempfile.gettempdir()).name + "-"  # of a run's own, as its temporary folder is
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        name: what it is.
        port: of its HTTP.
        grpc_port: of its gRPC; None where it speaks none.
        pid: of its first process.
    """

    name: str
    port: int
    grpc_port: int | None
    pid: int


@contextmanager
def serving(
    models: Mapping[str, Settings | None], bundle: Path | None, instances: int, until: float
) -> Iterator[Server]:
    """Serve models, each with some instances; None is the echo, which answers what it gets.

    Args:
        models: by name.
        bundle: folder or archive of `make_bundle.py`.
        instances: of each model but the echo.
        until: when to give up waiting for the models, as `time.monotonic` counts.
    """
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        start = _start_plain if bundle is None else _start_triton
        yield start(models, folder, bundle, instances, until, undo)


def _start_plain(
    models: Mapping[str, Settings | None],
    folder: Path,
    _bundle: Path | None,
    instances: int,
    until: float,
    undo: ExitStack,
) -> Server:
    config = {
        "instances": instances,
        "models": {name: settings and settings.to_json() for name, settings in models.items()},
    }
    command = [sys.executable, str(checkout.HERE / "plain_server.py"), json.dumps(config)]
    log = folder / "log"
    process = _launch(command, dict(os.environ), log, undo)
    while time.monotonic() < until:
        found = log.read_text(encoding="utf-8").splitlines()
        if found and found[0].isdecimal():
            return Server(name="torch in one process, not Triton", port=int(found[0]), grpc_port=None, pid=process.pid)
        _check(process, log)
        time.sleep(_POLL_S)
    raise TimeoutError("the models were not ready in time")


def _start_triton(
    models: Mapping[str, Settings | None],
    folder: Path,
    bundle: Path | None,
    instances: int,
    until: float,
    undo: ExitStack,
) -> Server:
    assert bundle is not None
    if bundle.is_file():
        with tarfile.open(bundle) as archive:
            archive.extractall(folder / "bundle", filter="data")
        bundle = folder / "bundle"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = bundle / "stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        made_for = ", ".join(path.name for path in (bundle / "stubs").iterdir())
        raise FileNotFoundError(f"the bundle is for Python {made_for}, this is {version}")
    backend = folder / "backends" / "python"
    shutil.copytree(bundle / "python", backend)
    shutil.copy(stub, backend)
    for name, settings in models.items():
        _write_model(folder / "models" / name, settings, instances)
    segments = f"{SEGMENTS}{secrets.token_hex(4)}"
    undo.callback(remove_segments, segments)
    port, grpc_port = _free_ports()
    options = {
        "model-repository": folder / "models",
        "backend-directory": folder / "backends",
        "http-address": "127.0.0.1",
        "http-port": port,
        "http-thread-count": 16,
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc_port,
        "allow-metrics": "false",
        "exit-timeout-secs": 5,
        # Room for a full batch in and out from the beginning: growing it stops every request.
        "backend-config": f"python,shm-region-prefix-name={segments}",
    }
    command = [str(bundle / "bin" / "tritonserver"), "--disable-auto-complete-config"]
    command += [f"--{name}={value}" for name, value in options.items()]
    command += ["--backend-config=python,shm-default-byte-size=134217728"]
    log = folder / "log"
    process = _launch(command, _triton_environment(bundle), log, undo)
    while time.monotonic() < until:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return Server(name="Triton, Python backend", port=port, grpc_port=grpc_port, pid=process.pid)
        _check(process, log)
        time.sleep(_POLL_S)
    raise TimeoutError(f"Triton was not ready in time: {_last_words(log)}")


def _write_model(folder: Path, settings: Settings | None, instances: int) -> None:
    (folder / "1").mkdir(parents=True)
    shutil.copy(checkout.HERE / "triton_model.py", folder / "1" / "model.py")
    outputs = {"swapped": ("UINT8", "512, 512, 3")}
    if settings is not None:
        outputs |= {"gender": ("FP32", "2")} if settings.direction is None else {}
        outputs["swapped_gender"] = ("FP32", "2")
    lines = ['backend: "python"', f"max_batch_size: {MAX_ECHO if settings is None else settings.sizes[-1]}"]
    lines += ['input { name: "image" data_type: TYPE_UINT8 dims: [ 512, 512, 3 ] }']
    lines += ['input { name: "persona" data_type: TYPE_INT32 dims: [ 1 ] }']
    lines += [f'output {{ name: "{name}" data_type: TYPE_{t} dims: [ {d} ] }}' for name, (t, d) in outputs.items()]
    # The models choose their device themselves: Triton is not asked for a GPU.
    lines += [f"instance_group {{ kind: KIND_CPU count: {instances if settings else 1} }}", "dynamic_batching { }"]
    if settings is not None:
        for key, text in (("folder", str(checkout.HERE)), ("settings", settings.to_json())):
            lines += [f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(text)} }} }}']
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _triton_environment(bundle: Path) -> dict[str, str]:
    """In which the models' processes find this Python's library and its packages."""
    libraries = [str(bundle / "lib"), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in libraries if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "OPENBLAS_NUM_THREADS": "1",
    }


def _launch(command: list[str], environment: dict[str, str], log: Path, undo: ExitStack) -> subprocess.Popen[bytes]:
    """Start a server in this process' group, so that it is killed with it."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, preexec_fn=checkout.end_with_parent
        )
    undo.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise ChildProcessError(f"the server ended at its start: {_last_words(log, process.returncode)}")


def _last_words(log: Path, code: int = 1) -> str:
    """What a server's log says of its end: Triton's error where there is one."""
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = [line for line in text.splitlines() if line.startswith(("E1", "E0")) or "Error" in line]
    return reason(code, "\n".join(errors) or text)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:  # both at once, so that they differ
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def remove_segments(prefix: str) -> None:
    """Remove shared memory that a killed process left."""
    for segment in Path("/dev/shm").glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
