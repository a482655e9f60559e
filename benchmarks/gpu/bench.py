"""What one GPU does with the generators and behind a server, on a machine with torch and numpy alone.

    python benchmarks/gpu/bench.py --out DIR                      writes DIR/figures.jsonl, ends within 450 s
    python benchmarks/gpu/bench.py --out DIR --triton BUNDLE      serves with Triton, of make_bundle.py
    python benchmarks/gpu/bench.py --out DIR --dry-run            tiny sizes on the CPU: figures without meaning

Nothing is downloaded, and nothing installed. Each part runs in a process of its own within its share of the time, in
the order of their worth; a part that fails or takes too long is a line with its reason, and the next begins.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import checkout
from figures import FILE, Figures
from visard_benchmarks.environment import environment
from visard_benchmarks.gpu.reports import DRY_RUN, read_lines, reason

# Part -> seconds of 450; what one leaves, the next has on top.
PARTS = {"peaks": 40, "offline": 115, "parity": 30, "served": 165, "wire": 50, "compiled": 50}
SECONDS = 450
MARGIN_S = 2.0  # a part plans to end so long before it is ended


def run_part(name: str, out: Path, started: float, until: float, dry: bool, triton: Path | None) -> None:
    """Be the process of one part."""
    checkout.end_with_parent()
    import torch

    figures = Figures(out, name, started, until - MARGIN_S)
    device = "cpu" if dry else "cuda"
    if dry:
        torch.set_num_threads(1)  # tests run beside others
    elif not torch.cuda.is_available():
        sys.exit("torch finds no CUDA GPU here; --dry-run needs none")
    torch.backends.cudnn.benchmark = True
    if name in ("served", "wire"):
        import served

        served.PARTS[name](figures, device, dry, triton)
    elif name == "parity":
        import parity

        parity.parity(figures, device, dry)
    else:
        import offline

        offline.PARTS[name](figures, device, dry)


def supervise(name: str, arguments: argparse.Namespace, scratch: Path, started: float, until: float) -> None:
    """Run one part in a process of its own, and write why it did not come to its end.

    Args:
        name: of the part.
        arguments: of this program.
        scratch: the part's temporary folder.
        started: when the benchmark began.
        until: when the part is ended.
    """
    figures = Figures(arguments.out, name, started, until)
    command = [sys.executable, __file__, "--out", str(arguments.out), "--part", name, str(started), str(until)]
    command += ["--dry-run"] if arguments.dry_run else []
    command += ["--triton", str(arguments.triton)] if arguments.triton else []
    log = arguments.out / f"{name}.log"
    with log.open("w", encoding="utf-8") as errors:
        environment = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stderr=errors, env=environment, start_new_session=True)
        try:
            process.wait(max(until - time.monotonic(), 0))
            why = "" if process.returncode == 0 else reason(process.returncode, log.read_text(encoding="utf-8"))
        except subprocess.TimeoutExpired:
            why = "not done within its share of the time"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it had started
            process.wait()
            for segment in Path("/dev/shm").glob(f"{scratch.name}-*"):
                segment.unlink(missing_ok=True)
    if why:
        figures.add(failed=why)


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count each part's figures and failures."""
    counted = Counter((line["part"], "failed" if "failed" in line else "figures") for line in lines)
    return {
        part: {kind: counted[part, kind] for kind in ("figures", "failed")}
        for part in dict.fromkeys(line["part"] for line in lines)
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {FILE} and logs; lines are appended")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"when to have ended (default {SECONDS})")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--triton", type=Path, help="bundle of make_bundle.py; without it torch itself serves")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: shows that it runs")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.out = parsed.out.absolute()
    parsed.triton = parsed.triton and parsed.triton.absolute()
    parsed.parts = [part for part in PARTS if part in parsed.parts.split(",")]
    return parsed


def main() -> None:
    arguments = parse()
    if arguments.part:
        name, started, until = arguments.part
        run_part(name, arguments.out, float(started), float(until), arguments.dry_run, arguments.triton)
        return
    if arguments.dry_run:
        print(DRY_RUN, flush=True)
    started = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Figures(arguments.out, "environment", started, started).add(
        dry_run=arguments.dry_run, seconds=arguments.seconds, triton=arguments.triton is not None, **environment()
    )
    scale = arguments.seconds / sum(PARTS[part] for part in arguments.parts)
    until = started
    with tempfile.TemporaryDirectory(prefix="visard-gpu-", ignore_cleanup_errors=True) as scratch:
        for part in arguments.parts:
            until += PARTS[part] * scale
            supervise(part, arguments, Path(scratch), started, until)
    if arguments.dry_run:
        print(DRY_RUN)
    lines = read_lines(arguments.out / FILE)
    print(json.dumps({"dry_run": arguments.dry_run, "figures": str(arguments.out / FILE), "parts": summary(lines)}))


if __name__ == "__main__":
    main()
