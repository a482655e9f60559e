"""Ten thousand photos through `visard folder`: does its memory stay flat, and does it survive being killed?

Two runs over the same photos, with models that do next to nothing. The first is left alone while the memory of its
process is read. The second is killed with SIGKILL at three random moments and goes on each time; every picture that is
visible at such a moment has to be whole, and at its end the two output folders have to be the same to the byte.

Prints both; the last line is JSON. Exit code 1 where the folders differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment
from folder import make_photos
from PIL import Image
from rich.progress import Progress

from visard_server.triton import TritonServer
from visard_testing.tiny_models import tiny_repository

SETTLED = 500  # photos after which nothing new is loaded any more
SIZE = 200  # pixels: as small as a photo with a face that is accepted can comfortably be


def start(source: Path, target: Path, url: str) -> subprocess.Popen[bytes]:
    """Run the command line."""
    command = [sys.executable, "-m", "visard_cli", "folder", source, target, "--server", url, "--no-face", "clean"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pictures(target: Path) -> dict[str, bytes]:
    """Relative path → digest of everything that is visible in an output folder."""
    return {
        path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in target.rglob("*")
        if path.is_file() and ".visard" not in path.parts
    }


def written(target: Path) -> int:
    """How many pictures are visible."""
    return sum(entry.name.endswith(".jpg") for entry in os.scandir(target))


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def watch(process: subprocess.Popen[bytes], target: Path, count: int, until: int) -> list[tuple[int, float]]:
    """Note how many pictures there are and the process' memory, until `until` pictures or its end."""
    noted: list[tuple[int, float]] = []
    with Progress() as progress:
        task = progress.add_task("photos", total=count)
        while process.poll() is None and (not noted or noted[-1][0] < until):
            time.sleep(0.5)
            try:
                now = written(target), resident_mib(process.pid)
            except (OSError, IndexError):  # it has not begun, or has just ended
                continue
            if not now[1]:  # ended, and not waited for yet
                break
            noted.append(now)
            progress.update(task, completed=noted[-1][0])
    return noted


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="photos; 20,000 are anonymised in all")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments of the kills")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch, TritonServer(tiny_repository(Path(scratch) / "models")) as server:
        photos, calm, killed = (Path(scratch) / name for name in ("photos", "calm", "killed"))
        photos.mkdir()
        make_photos(photos, arguments.count)
        for path in photos.iterdir():
            with Image.open(path) as image:
                image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(path, quality=90)
        began = time.perf_counter()
        process = start(photos, calm, server.grpc_url)
        memory = watch(process, calm, arguments.count, arguments.count + 1)
        code = process.wait()
        seconds = time.perf_counter() - began
        settled = [mib for done, mib in memory if done >= min(SETTLED, arguments.count // 2)]
        tenth = max(1, len(settled) // 10)
        first, last = statistics.median(settled[:tenth]), statistics.median(settled[-tenth:])
        print(f"left alone: exit code {code}, {arguments.count / seconds:.1f} photos/s")
        print(
            f"memory after {SETTLED} photos {first:.0f} MiB, at the end {last:.0f} MiB, at most {max(settled):.0f} MiB"
        )

        expected = pictures(calm)
        at: list[int] = []
        whole = True
        for blow in sorted(moments.sample(range(arguments.count // 20, arguments.count * 9 // 10), 3)):
            process = start(photos, killed, server.grpc_url)
            watch(process, killed, arguments.count, blow)
            time.sleep(moments.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
            visible = pictures(killed)
            whole &= visible.items() <= expected.items()
            at.append(len(visible))
        process = start(photos, killed, server.grpc_url)
        watch(process, killed, arguments.count, arguments.count + 1)
        code = process.wait()
        same = pictures(killed) == expected
    print(f"killed at {at} pictures (seed {arguments.seed}), all of them whole: {whole}")
    print(f"in the end: exit code {code}, {len(expected)} pictures, the same as without: {same}")
    print(
        json.dumps(
            {
                "count": arguments.count,
                "pictures": len(expected),
                "photos_per_second": round(arguments.count / seconds, 1),
                "memory_mib": {"settled": round(first), "end": round(last), "most": round(max(settled))},
                "killed_at": at,
                "seed": arguments.seed,
                "identical": same and whole,
                "environment": environment(),
            }
        )
    )
    return 0 if same and whole else 1


if __name__ == "__main__":
    sys.exit(main())
