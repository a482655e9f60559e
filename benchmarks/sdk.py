"""What the SDK costs its caller: the time to import it, and its memory over many photos.

Starts the embedded server with the demo models, sends the sample photo again and again through `anonymize_many` and
prints the resident memory of this process (the server's is not in it). The import is measured in fresh interpreters,
beside the floor: numpy alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from visard import Client
from visard_server.embedded import SAMPLE_PHOTO, demo_models
from visard_server.triton import TritonServer


def import_seconds(module: str, repeats: int = 7) -> float:
    """Median wall time of an import in a fresh interpreter, without the interpreter's own start."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(repeats)]
    return statistics.median(float(run.stdout) for run in runs)


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=500, help="how many photos (default 500)")
    arguments = parser.parse_args()

    visard_s, numpy_s = import_seconds("visard"), import_seconds("numpy")
    print(f"import visard: {visard_s:.3f} s (numpy alone: {numpy_s:.3f} s)")
    repository = demo_models()
    memory: list[float] = []
    with TritonServer(repository) as server, Client(server.grpc_url) as client:
        start = time.perf_counter()
        photos = itertools.repeat(SAMPLE_PHOTO, arguments.photos)
        for outcome in client.anonymize_many(photos):
            if outcome.error is not None:
                raise outcome.error
            if (outcome.index + 1) % max(1, arguments.photos // 10) == 0:
                memory.append(resident_mib())
                print(f"{outcome.index + 1:5} photos: {memory[-1]:7.1f} MiB")
        rate = arguments.photos / (time.perf_counter() - start)
    growth = memory[-1] - memory[len(memory) // 5]
    print(f"growth from the first fifth to the end: {growth:+.1f} MiB; {rate:.1f} photos/s")
    print(json.dumps({"import_s": round(visard_s, 3), "growth_mib": round(growth, 1), "photos": arguments.photos}))


if __name__ == "__main__":
    main()
