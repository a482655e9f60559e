"""How the GPU benchmarks report: a line of JSON as soon as a figure is there, a reason where there is none."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

DRY_RUN = """
**********************************************************************************
*  DRY RUN: tiny models on the CPU. It shows that the benchmark runs, nothing     *
*  else: NO FIGURE BELOW SAYS ANYTHING ABOUT A GPU OR ABOUT THE PUBLISHED MODELS. *
**********************************************************************************
"""
TAIL_LINES = 12  # of a failed process's output, to find its reason in


def append(path: Path, line: dict[str, Any]) -> None:
    """Append one line of JSON to a file, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read what was appended so far; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def first_line(error: BaseException) -> str:
    """Name an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def reason(code: int, output: str) -> str:
    """Say why a process failed, from its exit code and from the end of what it wrote."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.splitlines()[-TAIL_LINES:] if line.strip()]
    return lines[-1][:300] if lines else f"ended with code {code}"
