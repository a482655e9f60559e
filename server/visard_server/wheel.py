"""What is used of the `nvidia-pytriton` wheel: its Triton, and the backends that this runs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from visard_errors import MissingExtra, ServerError

_MACHINES = ("x86_64", "aarch64")  # for which there is a wheel
_BELOW = (3, 13)  # with which numpy 1 ends, which it needs: see pyproject.toml
_BACKENDS = Path(__file__).with_name("backends")


@dataclass(frozen=True, kw_only=True)
class Wheel:
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
        shutil.copytree(_BACKENDS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

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


def find_wheel() -> Wheel:
    """Find the wheel.

    Raises:
        MissingExtra: `visard[serve]` is not installed.
        ServerError: there is none for this system or this Python.
    """
    version = ".".join(map(str, sys.version_info[:2]))
    if sys.platform != "linux" or platform.machine() not in _MACHINES or sys.version_info >= _BELOW:
        here = f"{platform.system()} on {platform.machine()} with Python {version}"
        raise ServerError(
            f"the embedded server runs on Linux (x86-64 and ARM) with Python 3.10 to 3.12, this is {here}: use "
            "--engine local (pip install 'visard[local]'), or run Triton in its container"
        )
    spec = importlib.util.find_spec("pytriton")  # found, not imported: only its files are wanted
    if spec is None or spec.origin is None or importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("serve", "the embedded server")
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    return Wheel(
        binary=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        stub=stub,
    )


def programs_folder(wheel: Wheel, undo: ExitStack) -> Path:
    """Make a folder of what the server runs, which is removed with `undo`. Raises ServerError where it cannot be."""
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
