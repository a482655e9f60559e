"""Runs NVIDIA's real Triton server from the `nvidia-pytriton` wheel: no Docker, no GPU needed.

    with TritonServer("models") as server:
        Client(server.grpc_url)...

The model repository decides what is served and how.

The server lives no longer than the Python process that started it, however that ends. What it writes goes to a folder
in the temporary directory (programs) and to shared memory (pixels), both under a name of its own, and is removed when
it ends, also when the parent is killed with SIGKILL (see `_launch.py`). Only Python's bytecode (`__pycache__`) stays in
the model repository, where that can be written.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from visard_errors import MissingExtra, RepositoryError, ServerError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

DRAIN_S = 10  # what requests in flight get when the server stops
_KILL_AFTER_S = DRAIN_S + 10  # the models' own end included
_LOG_LINES = 500
_POLL_S = 0.05
_PORT_ATTEMPTS = 3  # a free port can be taken by someone else before Triton opens it, seconds later

# Clients may ask for health, metadata and inference. The rest is the operator's, under a key of each start.
_RESTRICTED = "model-config,model-repository,statistics,trace,logging"
_SHARED_MEMORY = "shared-memory"
_ADMIN_HEADER = "visard-admin"

_NO_PROXY = [("grpc.enable_http_proxy", 0)]  # it is on this machine, whatever the environment says of others

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model of a running server."""

    name: str
    version: str
    ready: bool


class TritonServer:
    """A Triton server on this machine, ready inside the `with` block.

    Leaving the block stops the server at once, because the caller already has all answers. A server that others
    use waits inside the block (`wait`) and lets its models finish their work.

    Args:
        repository: folder with one folder per model, each with its `config.pbtxt`.
        host: address to listen on. Triton has no login: anything but a loopback address belongs behind a gateway.
        grpc_port: 0 picks a free port; so for the other two.
        http_port: health and the HTTP form of inference.
        metrics_port: Prometheus.
        shared_memory: let callers over gRPC pass tensors in shared memory. Every caller who reaches the port can then
            use every other caller's memory: for callers on this machine that trust each other, never behind a gateway.
        startup_timeout_s: how long the models may take to load; a GPU model with many warm-ups takes minutes.
        log: where the server's log goes, line by line; its end is kept in memory in any case. It holds no payloads.

    Attributes:
        grpc_url: host:port.
        http_url: with its scheme.
        metrics_url: the page that Prometheus reads.
        admin_headers: gRPC metadata that opens what clients may not do, such as reading statistics. The key is new at
            every start and stands in Triton's command line: it keeps out clients, not other users of this machine.

    Raises (from `__enter__` or `start`):
        MissingExtra: `visard[serve]` is not installed.
        RepositoryError: there is no such repository or a model does not load; the message quotes why.
        ServerError: a port is taken, the platform is not supported, or the server ended or hung at its start.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        shared_memory: bool = False,
        startup_timeout_s: float = 600.0,
        log: TextIO | None = None,
    ) -> None:
        self.repository = Path(repository).resolve()
        self._host = host
        self._wanted_ports = (grpc_port, http_port, metrics_port)
        self._restricted = _RESTRICTED if shared_memory else f"{_RESTRICTED},{_SHARED_MEMORY}"
        self._startup_timeout_s = startup_timeout_s
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo.close()

    def start(self) -> None:
        """Start the server and wait until every model is ready."""
        wheel = _find_wheel()
        if not any(self.repository.glob("*/config.pbtxt")):
            raise RepositoryError(f"{self.repository} holds no model: `visard export` writes a model repository")
        for attempt in range(_PORT_ATTEMPTS):
            ports = _choose_ports(self._host, self._wanted_ports)
            try:
                self._start_once(wheel, ports)
            except _PortLost as error:
                if attempt == _PORT_ATTEMPTS - 1:
                    raise ServerError(f"the embedded server lost its port to another program: {error}") from None
            else:
                return

    def stop(self) -> None:
        """Let the models finish what they are at, then end the server. For a server that others use.

        Triton refuses an ensemble's next step once it is stopping: such a request fails as unavailable, safe to retry.
        Harmless when repeated.
        """
        try:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(_KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C comes
            self._undo.close()

    def wait(self) -> None:
        """Serve until Ctrl-C or SIGTERM, then `stop`. To be called in the main thread, with the server started.

        Raises:
            ServerError: the server ended by itself.
        """
        asked = threading.Event()
        previous = {sign: signal.signal(sign, lambda *_: asked.set()) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not asked.wait(_POLL_S):
                if self._process is None or self.ended:
                    raise ServerError(f"the server ended by itself: {_last_words(self._tail)}")
            self.stop()
        finally:
            for sign, handler in previous.items():
                signal.signal(sign, handler)

    @property
    def ended(self) -> bool:
        """Whether the server has ended by itself, and is not started anew."""
        return self._process is not None and self._process.poll() is not None

    def models(self) -> list[ServedModel]:
        """List the models, by name. Raises `tritonclient`'s error when the server does not answer."""
        with InferenceServerClient(self.grpc_url, channel_args=_NO_PROXY) as client:
            index = client.get_model_repository_index(headers=self.admin_headers, client_timeout=5)
        return sorted(
            (
                ServedModel(name=model.name, version=model.version, ready=model.state == "READY")
                for model in index.models
            ),
            key=lambda model: model.name,
        )

    def _start_once(self, wheel: _Wheel, ports: tuple[int, int, int]) -> None:
        host = _in_url(self._host)
        self.grpc_url = f"{host}:{ports[0]}"
        self.http_url = f"http://{host}:{ports[1]}"
        self.metrics_url = f"http://{host}:{ports[2]}/metrics"
        key = secrets.token_urlsafe(24)
        self.admin_headers = {f"triton-grpc-protocol-{_ADMIN_HEADER}": key}
        with ExitStack() as undo:  # in reverse order, here when the start fails, else in `stop`
            folder = _programs(wheel, undo)
            segments = folder.name  # as unique as the folder
            undo.callback(_remove_shared_memory, segments)
            listening = f"ipv6:{self._host}" if ":" in self._host else self._host  # as libevhtp wants it
            options = {
                "model-repository": self.repository,
                "backend-directory": folder,
                "model-control-mode": "none",
                "exit-on-error": "true",
                "exit-timeout-secs": DRAIN_S,
                "grpc-address": host,
                "grpc-port": ports[0],
                "http-address": listening,
                "http-port": ports[1],
                "metrics-address": listening,
                "metrics-port": ports[2],
                "grpc-restricted-protocol": f"{self._restricted}:{_ADMIN_HEADER}={key}",
                "http-restricted-api": f"{_RESTRICTED},{_SHARED_MEMORY}:{_ADMIN_HEADER}={key}",
                "backend-config": f"python,shm-region-prefix-name={segments}",
            }
            self._tail: deque[str] = deque(maxlen=_LOG_LINES)
            command = [str(wheel.binary), "--disable-auto-complete-config"]
            command += [f"--{name}={value}" for name, value in options.items()]
            started: Future[subprocess.Popen[str]] = Future()
            self._thread = threading.Thread(
                target=self._run,
                args=([str(folder), segments, *command], wheel.environment(), started),
                name="triton",
                daemon=True,
            )
            self._thread.start()
            undo.callback(self._thread.join)
            undo.callback(lambda: _kill(started.result()))
            self._process = started.result()
            self._wait_until_ready(self._process, ports)
            self._undo = undo.pop_all()

    def _run(self, command: list[str], environment: dict[str, str], started: Future[subprocess.Popen[str]]) -> None:
        """Be the thread that starts the server and reads its log to the end.

        One thread for both, because the kernel sends the parent-death signal when the *thread* that started a process
        ends; this one ends when the server and its models have closed their log.
        """
        try:
            process = subprocess.Popen(  # noqa: S603 -- our own program with our own arguments
                [sys.executable, "-I", "-S", str(_HERE / "_launch.py"), str(os.getpid()), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the parent, which ends the server in order
            )
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        with process:
            for line in process.stdout or ():
                self._tail.append(line)
                if self._log is not None:
                    with suppress(OSError, ValueError):  # a log that nobody reads any more must not end the server
                        self._log.write(line)

    def _wait_until_ready(self, process: subprocess.Popen[str], ports: tuple[int, int, int]) -> None:
        deadline = time.monotonic() + self._startup_timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                _kill(process)  # the models, which would keep the log open for another second
                self._thread.join()
                raise self._failure()
            with suppress(InferenceServerException, OSError):
                if all(model.ready for model in self.models()):
                    for port in ports[1:]:  # opened after gRPC, milliseconds later
                        socket.create_connection((self._host, port), timeout=1).close()
                    return
            time.sleep(_POLL_S)
        raise ServerError(
            f"the embedded server was not ready within {self._startup_timeout_s:g} s: {_last_words(self._tail)}"
        )

    def _failure(self) -> Exception:
        log = "".join(self._tail)
        if _PORT_TAKEN in log:
            return _PortLost(_last_words(self._tail))
        reasons = _failed_models(log)
        if not reasons:
            return ServerError(f"the embedded server ended at its start: {_last_words(self._tail)}")
        listed = "; ".join(f"model '{model}' does not load: {reason}" for model, reason in reasons.items())
        hint = (
            "export it for the CPU or serve it on a machine with a GPU"
            if _NO_GPU in log
            else "repair it or export it again"
        )
        return RepositoryError(f"{self.repository} cannot be served: {listed}. What to do: {hint}")


class _PortLost(Exception):
    """Between the choice of a port and its opening someone else took it."""


@dataclass(frozen=True, kw_only=True)
class _Wheel:
    """Where the `nvidia-pytriton` wheel keeps what is used of it."""

    binary: Path
    libraries: Path
    python_backend: Path
    stub: Path

    def copy_backends(self, folder: Path) -> None:
        """Make a backend directory; of copies, because Triton refuses a link that leaves the directory."""
        python = folder / "python"
        python.mkdir()
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(self.python_backend / name, python)
        shutil.copy(self.stub, python)
        (python / self.stub.name).chmod(0o755)
        shutil.copytree(_HERE / "backends", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

    def environment(self) -> dict[str, str]:
        """Make the environment in which the models' processes find this Python's library and packages."""
        libraries = [self.libraries, sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in libraries if path),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "OPENBLAS_NUM_THREADS": "1",  # no model does linear algebra in numpy
            # glibc keeps the memory of freed images for the next ones: 1 ms of 8 ms CPU less per image and swap.
            "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
            "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2),
        }


def _find_wheel() -> _Wheel:
    if sys.platform != "linux":
        raise ServerError(f"the embedded server runs on Linux, not on {sys.platform}: run Triton in its container")
    spec = importlib.util.find_spec("pytriton")  # found, not imported: only its files are wanted
    if spec is None or spec.origin is None or importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("serve", "the embedded server")
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        supported = ", ".join(sorted((path.name for path in stub.parents[1].iterdir()), key=lambda name: int(name[2:])))
        raise ServerError(f"the embedded server supports Python {supported}, this is {version}: use one of these")
    return _Wheel(
        binary=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        stub=stub,
    )


def _choose_ports(host: str, wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replace each 0 by a free port, and refuse a port that is taken before the models are loaded in vain."""
    with ExitStack() as held:  # all at once, so that no two are the same
        ports = []
        for port in wanted:
            try:
                family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                probe = held.enter_context(socket.socket(family))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            except OSError as error:
                what = "another host" if error.errno != errno.EADDRINUSE else "another port, or 0 for a free one"
                raise ServerError(
                    f"cannot listen on {_in_url(host)}:{port} ({error.strerror}): choose {what}"
                ) from None
            ports.append(probe.getsockname()[1])
    return ports[0], ports[1], ports[2]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _programs(wheel: _Wheel, undo: ExitStack) -> Path:
    """Make a folder of what the server runs, which is removed with `undo`."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="visard-server-"))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        wheel.copy_backends(folder)
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if os.access(folder / "python" / wheel.stub.name, os.X_OK):
            return folder
        reason = "it is mounted noexec: no program can be run from it"
    raise ServerError(
        f"the temporary folder {tempfile.gettempdir()} cannot hold the server's programs ({reason}): make room, or set "
        "TMPDIR to a folder on another disk"
    )


def _kill(process: subprocess.Popen[str]) -> None:
    """End the server and its models, which are a process group, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _remove_shared_memory(prefix: str) -> None:
    """Remove what a killed server left: it holds faces."""
    for segment in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 -- where Linux keeps POSIX shared memory
        segment.unlink(missing_ok=True)


_PORT_TAKEN = "already in use"
_NO_GPU = "no GPUs are available"
_FAILED_TO_LOAD = re.compile(r"failed to load '([^']+)' version \d+: (.*)\"$", re.MULTILINE)
_POLL_FAILED = re.compile(r"Poll failed for model directory '([^']+)': (.*)\"$", re.MULTILINE)
_BAD_CONFIG = re.compile(r"Error parsing text-format \S+ (.*)$", re.MULTILINE)
_UNFIT_ENSEMBLE = re.compile(r"\"Invalid argument: ensemble (\S+) (contains .*)\"$", re.MULTILINE)
_TRACEBACK = r"\n\nAt:"  # Triton writes a model's traceback, with its line breaks escaped, behind the message


def _failed_models(log: str) -> dict[str, str]:
    """Find in a server's log which models did not load and why; ensembles only where no part of them is named."""
    found = [*_FAILED_TO_LOAD.findall(log), *_POLL_FAILED.findall(log)] or _UNFIT_ENSEMBLE.findall(log)
    reasons = {}
    for model, reason in found:
        reason = reason.split(_TRACEBACK)[0]
        reasons[model] = re.sub(r"^(Internal|Invalid argument|Not found|Unsupported): (\w+Exception: )?", "", reason)
    for details in _BAD_CONFIG.findall(log):
        reasons = {model: f"{reason} ({details})" for model, reason in reasons.items()}
    return reasons


def _last_words(tail: deque[str]) -> str:
    """Quote the last error of a log, else its end."""
    lines = [line.strip() for line in tail if line.strip()] or ["it wrote no log"]
    errors = [line for line in lines if re.match(r"E\d{4} |error:", line)]
    return (errors or lines)[-1]
