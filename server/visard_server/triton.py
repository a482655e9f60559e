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
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from visard_errors import RepositoryError, ServerError
from visard_server.startup_log import NO_GPU, PORT_TAKEN, failed_models, last_words
from visard_server.wheel import Wheel, find_wheel, programs_folder

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

_LAUNCHER = Path(__file__).with_name("_launch.py")


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
        wheel = find_wheel()
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
                    raise ServerError(f"the server ended by itself: {last_words(self._tail)}")
            self.stop()
        finally:
            for sign, handler in previous.items():
                signal.signal(sign, handler)

    @property
    def ended(self) -> bool:
        """Whether the server has ended by itself, and is not started anew."""
        return self._process is not None and self._process.poll() is not None

    def models(self) -> list[ServedModel]:
        """List the models, by name. Raises OSError or `http.client.HTTPException` when the server does not answer.

        Over plain HTTP, because Triton's gRPC client writes a traceback where Ctrl-C meets it while it is made. No
        proxy of the environment is asked.
        """
        http = HTTPConnection(self._host, self._http_port, timeout=5)
        try:
            http.request("POST", "/v2/repository/index", headers={_ADMIN_HEADER: self._key})
            answer = http.getresponse()
            if answer.status != HTTPStatus.OK:
                raise ConnectionError(f"the server does not list its models: {answer.status} {answer.reason}")
            index = json.load(answer)
        finally:
            http.close()
        models = (  # one that was not loaded has a name alone
            ServedModel(name=each["name"], version=each.get("version", ""), ready=each.get("state") == "READY")
            for each in index
        )
        return sorted(models, key=lambda model: model.name)

    def _start_once(self, wheel: Wheel, ports: tuple[int, int, int]) -> None:
        host = _in_url(self._host)
        self.grpc_url = f"{host}:{ports[0]}"
        self.http_url = f"http://{host}:{ports[1]}"
        self.metrics_url = f"http://{host}:{ports[2]}/metrics"
        self._http_port = ports[1]
        self._key = secrets.token_urlsafe(24)
        self.admin_headers = {f"triton-grpc-protocol-{_ADMIN_HEADER}": self._key}
        with ExitStack() as undo:  # in reverse order, here when the start fails, else in `stop`
            folder = programs_folder(wheel, undo)
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
                "grpc-restricted-protocol": f"{self._restricted}:{_ADMIN_HEADER}={self._key}",
                "http-restricted-api": f"{_RESTRICTED},{_SHARED_MEMORY}:{_ADMIN_HEADER}={self._key}",
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
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
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
            with suppress(HTTPException, OSError):
                for port in ports:  # opened one after the other
                    socket.create_connection((self._host, port), timeout=1).close()
                if all(model.ready for model in self.models()):
                    return
            time.sleep(_POLL_S)
        raise ServerError(
            f"the embedded server was not ready within {self._startup_timeout_s:g} s: {last_words(self._tail)}"
        )

    def _failure(self) -> Exception:
        log = "".join(self._tail)
        if PORT_TAKEN in log:
            return _PortLost(last_words(self._tail))
        reasons = failed_models(log)
        if not reasons:
            return ServerError(f"the embedded server ended at its start: {last_words(self._tail)}")
        listed = "; ".join(f"model '{model}' does not load: {reason}" for model, reason in reasons.items())
        hint = (
            "export it for the CPU or serve it on a machine with a GPU"
            if NO_GPU in log
            else "repair it or export it again"
        )
        return RepositoryError(f"{self.repository} cannot be served: {listed}. What to do: {hint}")


class _PortLost(Exception):
    """Between the choice of a port and its opening someone else took it."""


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


def _kill(process: subprocess.Popen[str]) -> None:
    """End the server and its models, which are a process group, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _remove_shared_memory(prefix: str) -> None:
    """Remove what a killed server left: it holds faces."""
    for segment in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 -- where Linux keeps POSIX shared memory
        segment.unlink(missing_ok=True)
