"""When faces should travel as files: pixels against JPEG over lines of several rates, and what it does to the scores.

One server with the demo models, and before it a relay that lets so many bits a second through in each direction, as a
line to another place does (its delay is left out: it is the same for both). Pixels and files take turns over each line.
Beside each rate stands its ceiling: what the line carries where nothing else takes time.

    python benchmarks/encoded.py                        20, 100 and 1,000 Mbit/s, and no line at all
    python benchmarks/encoded.py --lines 50 photos/     another line; scores of these photos' faces

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from load_loops import served
from numpy.typing import NDArray

from visard import Client, Connection, VisardError, scoring
from visard.wire import Swap, build_encoded_request, build_request
from visard_preprocess.align import finder
from visard_server.embedded import SAMPLE_PHOTO, aligned_faces, export_demo_models
from visard_server.triton import TritonServer

CHUNK = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="photos or folders of them; the sample photo by default")
    parser.add_argument("--lines", type=float, nargs="+", default=[20, 100, 1000], help="Mbit/s, each way")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="how often all take turns")
    parser.add_argument("--in-flight", type=int, default=8, help="faces under way at once")
    arguments = parser.parse_args()

    faces = list(read_faces(arguments.photos or [SAMPLE_PHOTO]))
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        export_demo_models(repository, encoded=True)
        with TritonServer(repository) as server:
            scores = compare_scores(server.grpc_url, faces)
            rates = compare_lines(server.grpc_url, faces[0], arguments)
    nbytes = {"pixels": raw_bytes(build_request("anonymizer", faces[0][None]))}
    files = [raw_bytes(build_encoded_request("encoded_anonymizer", face[None])) for face in faces]
    nbytes["files"] = round(statistics.mean(files))

    print(f"\nbytes of a face, one way: {nbytes['pixels']:,} as pixels, {nbytes['files']:,} as a file")
    print("\nfaces/s, and what the line alone would let through")
    print(f"{'line':>12}{'pixels':>20}{'files':>20}{'files / pixels':>18}")
    for line, of_line in rates.items():
        cells = []
        for kind, size in nbytes.items():
            ceiling = f" of {float(line) * 1e6 / 8 / size:.1f}" if line != "0" else ""
            cells.append(f"{of_line[kind]:.1f}{ceiling}")
        print(f"{f'{line} Mbit/s' if line != '0' else 'none':>12}{cells[0]:>20}{cells[1]:>20}{of_line['ratio']:>18.2f}")
    print(f"\nscores of {len(faces)} faces, files against pixels")
    for name, value in scores.items():
        print(f"  {name.replace('_', ' ')}: {value}")
    print(json.dumps({"bytes": nbytes, "faces_per_second": rates, "scores": scores, "environment": environment()}))


def read_faces(photos: list[Path]) -> Iterator[NDArray[np.uint8]]:
    """Align every face that can be; what is no photo is passed over."""
    for photo in photos:
        for path in sorted(photo.iterdir()) if photo.is_dir() else [photo]:
            with suppress(VisardError, OSError):
                yield from aligned_faces(path)


def raw_bytes(request: Any) -> int:
    return sum(map(len, request.raw_input_contents))


def compare_lines(url: str, face: NDArray[np.uint8], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Faces per second over each line (0: none), with faces as pixels and as files."""
    rates: dict[str, dict[str, float]] = {}
    for line in (*arguments.lines, 0):
        found: dict[str, list[float]] = {"pixels": [], "files": []}
        with relay(url, line * 1e6 / 8) if line else nullcontext(url) as through:
            for _ in range(arguments.repeats):
                for kind, values in found.items():
                    connection = Connection(
                        url=through, max_in_flight=arguments.in_flight, encoded=kind == "files", deadline_s=120
                    )
                    values.append(asyncio.run(served(connection, face, arguments.seconds))[0])
        of_line = {kind: round(statistics.median(values), 1) for kind, values in found.items()}
        ratios = [files / pixels for pixels, files in zip(found["pixels"], found["files"], strict=True)]
        rates[f"{line:g}"] = {**of_line, "ratio": round(statistics.median(ratios), 2)}
        print(f"{line:g} Mbit/s: {rates[f'{line:g}']}", file=sys.stderr)
    return rates


def compare_scores(url: str, faces: list[NDArray[np.uint8]]) -> dict[str, Any]:
    """What changes in the answers and in their scores when faces travel as files."""
    swaps: dict[bool, tuple[Swap, ...]] = {}
    for encoded in (False, True):
        with Client(Connection(url=url, encoded=encoded, deadline_s=120)) as client:
            swaps[encoded] = tuple(client.swap(face, personas=[0])[0] for face in faces)  # the same, to compare them
    describe = finder().descriptor
    rows = []
    for face, pixels, files in zip(faces, swaps[False], swaps[True], strict=True):
        original = describe(face)
        distances = [scoring.identity_distance(original, describe(swap.swapped)) for swap in (pixels, files)]
        similarities = [scoring.similarity(face, swap.swapped)[0] for swap in (pixels, files)]
        difference = np.abs(pixels.swapped.astype(int) - files.swapped).mean()
        rows.append((difference, *np.subtract(similarities[1], similarities[:1]), distances[1] - distances[0]))
    grey, similarity, distance = np.array(rows).T
    return {
        "grey_levels": round(float(grey.mean()), 2),
        "similarity_points_mean_and_largest": [round(float(similarity.mean()), 3), largest(similarity)],
        "identity_distance_mean_and_largest": [round(float(distance.mean()), 4), largest(distance)],
        "other_direction": differing(swaps, "gender"),
        "other_verdict_on_the_result": differing(swaps, "swapped_gender"),
    }


def largest(changes: NDArray[np.float64]) -> float:
    return round(float(np.abs(changes).max()), 3)


def differing(swaps: dict[bool, tuple[Swap, ...]], name: str) -> int:
    """How many faces are told another apparent gender."""
    pairs = zip(swaps[False], swaps[True], strict=True)
    return sum(int(getattr(a, name).argmax() != getattr(b, name).argmax()) for a, b in pairs)


@contextmanager
def relay(url: str, bytes_per_s: float) -> Iterator[str]:
    """Put a line of a rate, each way, before a server; all connections share it."""
    host, _, port = url.rpartition(":")
    loop = asyncio.new_event_loop()

    async def serve() -> asyncio.Server:
        up, down = Line(bytes_per_s), Line(bytes_per_s)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
            with suppress(asyncio.CancelledError):  # of the end
                await asyncio.gather(up.carry(reader, inner_writer), down.carry(inner_reader, writer))

        return await asyncio.start_server(connected, "127.0.0.1", 0)

    server = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Line:
    """Lets bytes through one direction at a rate."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_at = bytes_per_s, 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection's bytes until it ends."""
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                self._free_at = max(self._free_at, time.monotonic()) + len(chunk) / self._bytes_per_s
                await asyncio.sleep(self._free_at - time.monotonic())
                writer.write(chunk)
                await writer.drain()
        writer.close()


if __name__ == "__main__":
    main()
