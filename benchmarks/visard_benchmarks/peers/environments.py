"""The servers that are compared, and the virtual environments that they run in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SERVERS = Path(__file__).resolve().parent / "servers"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to serve the models.

    Attributes:
        title: how tables call it.
        script: its file in `servers/`.
        transport: how its answers are asked for.
        environment: name of the virtual environment that it shares with its like.
    """

    title: str
    script: str
    transport: Literal["http", "tcp", "grpc", "shared memory"]
    environment: str


PEERS = {
    "socket": Peer(title="bare TCP, no server", script="serve_socket.py", transport="tcp", environment="visard"),
    "fastapi": Peer(title="FastAPI + onnxruntime", script="serve_fastapi.py", transport="http", environment="fastapi"),
    "litserve": Peer(title="LitServe", script="serve_litserve.py", transport="http", environment="litserve"),
    "bentoml": Peer(title="BentoML", script="serve_bentoml.py", transport="http", environment="bentoml"),
    "visard": Peer(title="Visard, gRPC", script="serve_visard.py", transport="grpc", environment="visard"),
    "visard-shared": Peer(
        title="Visard, shared memory", script="serve_visard.py", transport="shared memory", environment="visard"
    ),
}

RIVALS = ("fastapi", "litserve", "bentoml")


def requirements(peer: Peer) -> tuple[str, ...]:
    """What the peer's file says that it needs, read without running it."""
    for node in ast.parse((SERVERS / peer.script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "REQUIREMENTS":
            return tuple(ast.literal_eval(node.value))
    raise ValueError(f"{peer.script} names no REQUIREMENTS")


def find_python(peer: Peer, environments: Path | None) -> Path | None:
    """The interpreter to run a peer with: its own environment's, or this one where it has all that is needed."""
    if environments is not None and (python := environments / peer.environment / "bin" / "python").exists():
        return python
    return Path(sys.executable) if is_installed(requirements(peer)) else None


def is_installed(needs: Sequence[str]) -> bool:
    """Whether this interpreter has packages in fitting versions, and all that they need in turn: pip would add none."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*pip, *needs], capture_output=True, check=False).returncode == 0


def how_to_install(peer: Peer, environments: Path | None) -> str:
    """The commands that would make the peer's environment."""
    folder = (environments or Path("peers-environments")) / peer.environment
    packages = " ".join(f"'{requirement}'" for requirement in requirements(peer))
    return f"python3 -m venv {folder} && {folder}/bin/pip install {packages}   (and --environments {folder.parent})"


def install(peers: Sequence[Peer], environments: Path) -> None:
    """Make the environments that are missing."""
    for peer in {peer.environment: peer for peer in peers}.values():
        folder = environments / peer.environment
        if find_python(peer, environments) is not None:
            continue
        print(f"{folder}: installing {', '.join(requirements(peer))}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *requirements(peer)], check=True)
