"""The shipped gateway, run here: the template rendered as the container renders it, by a real nginx."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from typing_extensions import Self

    from visard_server.triton import TritonServer

SHIPPED = Path(__file__).resolve().parents[2] / "docker" / "gateway"
HOST = "127.0.0.1"
_PATIENCE_S = 60  # a busy machine may take long


@dataclass(kw_only=True)
class Gateway:
    """nginx in front of Tritons, running inside the `with` block.

    Attributes:
        folder: an empty one, for the operator's files, the rendered configuration and the logs.
        tritons: the servers behind it; `balance` changes them.
        web: host:port of `visard web`, if there is one.
        rate: requests per second and client; so for the other limits.
    """

    folder: Path
    tritons: Sequence[TritonServer]
    web: str | None = None
    rate: int = 1000
    burst: int = 1000
    concurrency: int = 100
    web_body: str = "21m"
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(4))

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self.ports[0]}"

    @property
    def http_url(self) -> str:
        return f"https://{HOST}:{self.ports[1]}"

    @property
    def web_url(self) -> str:
        return f"https://{HOST}:{self.ports[3]}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.ports[2]}/metrics"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls.crt"

    def __enter__(self) -> Self:
        (self.folder / "run").mkdir()
        (self.folder / "keys.map").touch()
        subprocess.run([SHIPPED / "new-certificate", HOST, self.folder], check=True)
        self._write_upstreams(down=())
        self._render()
        with (self.folder / "access.log").open("w") as access, (self.folder / "error.log").open("w") as errors:
            self._process = subprocess.Popen(self._nginx("-g", "daemon off;"), stdout=access, stderr=errors)
        self._wait_until_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_PATIENCE_S)

    def new_key(self, client: str) -> str:
        """Let a client in; takes effect with `reload`."""
        done = subprocess.run(
            [SHIPPED / "new-key", client, self.folder / "keys.map"], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def balance(self, tritons: Sequence[TritonServer], *, down: Collection[TritonServer] = ()) -> None:
        """Change where requests go, without a restart."""
        self.tritons = tritons
        self._write_upstreams(down=down)
        self.reload()

    def reload(self) -> None:
        """Take over the operator's files; returns when the old worker processes accept nothing more."""
        old = self._workers()
        subprocess.run(self._nginx("-s", "reload"), check=True, capture_output=True)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            accepting = {pid for pid in self._workers() if "shutting down" not in _command_line(pid)}
            if accepting and not accepting & old:
                return
            time.sleep(0.02)
        raise TimeoutError((self.folder / "error.log").read_text())

    def has_drained(self) -> bool:
        """Whether what was under way at the last reload has ended."""
        return not any("shutting down" in _command_line(pid) for pid in self._workers())

    def access_log(self) -> list[dict[str, Any]]:
        """Read what was logged, one object per request."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def cpu_seconds(self) -> float:
        """Processor time that the worker processes have used so far."""
        ticks = 0
        for pid in self._workers():
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # in user and in kernel mode
        return ticks / os.sysconf("SC_CLK_TCK")

    def _write_upstreams(self, *, down: Collection[TritonServer]) -> None:
        text = (SHIPPED / "upstreams.conf").read_text()
        for port, urls in (
            (8001, {triton: triton.grpc_url for triton in self.tritons}),
            (8000, {triton: triton.http_url.removeprefix("http://") for triton in self.tritons}),
        ):
            shipped = re.findall(rf"^ *server triton-\d:{port} .*;\n", text, re.MULTILINE)
            lines = [
                re.sub(r"triton-1:\d+", url, shipped[0]).replace(";", " down;" if triton in down else ";")
                for triton, url in urls.items()
            ]
            text = text.replace("".join(shipped), "".join(lines))
        text = text.replace("server web:8080", f"server {self.web or '127.0.0.1:9 down'}")
        (self.folder / "upstreams.conf").write_text(text)

    def _render(self) -> None:
        values = {
            "VISARD_CONFIG": self.folder,
            "VISARD_RUN": self.folder / "run",
            "NGINX_LOCAL_RESOLVERS": HOST,  # which nobody asks: its servers have addresses
            "VISARD_GATEWAY": SHIPPED,
            "VISARD_GRPC_PORT": self.ports[0],
            "VISARD_HTTP_PORT": self.ports[1],
            "VISARD_METRICS_PORT": self.ports[2],
            "VISARD_RATE": self.rate,
            "VISARD_BURST": self.burst,
            "VISARD_CONCURRENCY": self.concurrency,
            "VISARD_WEB_PORT": self.ports[3],
            "VISARD_WEB_BODY": self.web_body,
        }
        names = " ".join(f"${{{name}}}" for name in values)  # nginx's own variables stay
        with (SHIPPED / "nginx.conf.template").open() as template, (self.folder / "nginx.conf").open("w") as rendered:
            environment = {name: str(value) for name, value in values.items()}
            subprocess.run(
                ["envsubst", names], stdin=template, stdout=rendered, env={**os.environ, **environment}, check=True
            )

    def _nginx(self, *arguments: str) -> list[str]:
        path = "/usr/sbin/nginx"  # Debian's place, which is not on every user's PATH
        return [path, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", "stderr", *arguments]

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(self.metrics_url.replace("/metrics", "/healthz")):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "error.log").read_text())

    def _workers(self) -> set[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="utf-8")
        return {int(pid) for pid in children.split()}


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:  # it has ended
        return "shutting down"


def free_ports(count: int) -> tuple[int, ...]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((HOST, 0))
    ports = tuple(probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    return ports
