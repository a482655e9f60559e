"""Where and with what a benchmark ran: machine, versions, commit and the digests of the models."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "visard", "numpy", "grpcio", "tritonclient", "nvidia-pytriton", "onnxruntime", "onnxruntime-gpu", "torch", "pillow",
    "dlib-bin",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, Any]:
    """Describe this machine and this checkout; nothing that names its user."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _lines("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def model_digests(provenance: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Take from the provenance of a server's models what tells one set of weights from another."""
    wanted = ("sha256", "checkpoint_sha256", "onnx_sha256", "precision", "trained")
    return {
        model: {name: value for name, value in origin.items() if name in wanted or name.endswith("sha256")}
        for model, origin in provenance.items()
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _commit() -> str:
    """The commit, marked where files differ from it; empty outside a checkout."""
    commit = _lines("git", "-C", str(_ROOT), "rev-parse", "HEAD")
    changed = _lines("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return (commit[0] + ("-dirty" if changed else "")) if commit else ""


def _lines(*command: str) -> list[str]:
    """What a program prints; nothing where there is no such program or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
