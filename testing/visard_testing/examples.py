"""The examples of the project, for tests that run them."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

_ADDRESSES = ("127.0.0.1:8001", "127.0.0.1:8080")  # where they expect a Triton, and `visard web`


def example(name: str, folder: Path, address: str) -> Path:
    """Copy an example into a folder, with the address of another server in it.

    Args:
        name: of its file.
        folder: where to.
        address: host and port of what it is to use.
    """
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    (known,) = (each for each in _ADDRESSES if each in text)
    path = folder / name
    path.write_text(text.replace(known, address), encoding="utf-8")
    return path
