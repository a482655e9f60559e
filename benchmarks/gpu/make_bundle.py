"""Packs Triton of the `nvidia-pytriton` wheel for a machine where it cannot be installed: about 40 MB.

    python benchmarks/gpu/make_bundle.py triton.tar.gz --python 3.12 --libpython /usr/lib/.../libpython3.12.so.1.0

The server and the libraries that it is linked with, stripped, and the Python backend with its stub for one version of
Python: that of the machine it goes to. The stub is linked with that version's shared library, which not every machine
has: bring it along where in doubt. Needs `visard[serve]` and, to strip, binutils.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def make_bundle(target: Path, python: str, libpython: Path | None = None) -> None:
    """Write the bundle.

    Args:
        target: an archive, or a new folder where its name has no `.gz`.
        python: version of the machine that it goes to, as `3.12`.
        libpython: that version's shared library.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        sys.exit("the nvidia-pytriton wheel is not installed: pip install 'visard[serve]'")
    package = Path(spec.origin).parent
    wheel, libraries = package / "tritonserver", package.parent / "nvidia_pytriton.libs"
    stub = wheel / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        sys.exit(f"the wheel has no stub for Python {python}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle" if target.suffix == ".gz" else target
        for name in ("bin", "lib", "python", f"stubs/{python}"):
            (folder / name).mkdir(parents=True)
        programs = [wheel / "bin" / "tritonserver", wheel / "backends" / "python" / "libtriton_python.so", stub]
        for program, place in zip(programs, ("bin", "python", f"stubs/{python}"), strict=True):
            shutil.copy(program, folder / place)
            (folder / place / program.name).chmod(0o755)
        shutil.copy(wheel / "backends" / "python" / "triton_python_backend_utils.py", folder / "python")
        for library in _linked(programs, libraries):
            shutil.copy(library, folder / "lib")
        if libpython is not None:
            shutil.copy(libpython, folder / "lib")
        if shutil.which("strip"):
            binaries = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"]
            subprocess.run(["strip", "--strip-all", *binaries], check=True)
        if folder != target:
            with tarfile.open(target, "w:gz") as archive:
                archive.add(folder, ".")


def _linked(programs: list[Path], libraries: Path) -> set[Path]:
    """Those of the wheel's libraries that the dynamic linker loads for some programs, one through the other."""
    found: set[Path] = set()
    for program in programs:
        environment = {"LD_LIBRARY_PATH": str(libraries)}
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, env=environment).stdout
        paths = [Path(path).resolve() for path in re.findall(r"=> (/\S+)", listed)]
        found |= {path for path in paths if path.parent == libraries.resolve()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="archive (.tar.gz) or folder to write")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=here, help=f"version of the machine it goes to (default {here})")
    parser.add_argument("--libpython", type=Path, help="libpython of that version, where that machine has none")
    arguments = parser.parse_args()
    make_bundle(arguments.target, arguments.python, arguments.libpython)


if __name__ == "__main__":
    main()
