"""Photos per second of `visard folder`, beside what each of its stages reaches alone on the same machine.

Three stages take turns with the whole, within one run, so that a slow minute of the machine slows them all:

    align-only       read, decode, find faces and align them, over all cores
    serve-only       the same faces through the server, as many at once as the run has
    write-only       score, blend, encode, prove and write the results, over all cores
    end-to-end       `anonymise_folder`, from an empty output folder to the manifest

The ceiling is the slowest stage's own rate. Where the server shares the cores with everything else, as the embedded one
on a CPU does, no order of work can reach it: the time of all stages together is then the floor, and the rate that
follows from it is printed too. The photos are crops of the sample photo; `--photos DIR` takes others. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from visard import AsyncClient, Connection, Swap
from visard_folder import FolderJob, Journal, Settings, anonymise_folder
from visard_folder.photo import Product, Steps, SwapRequest, advance, steps
from visard_folder.walk import Found, walk
from visard_folder.write import Writer
from visard_server.embedded import SAMPLE_PHOTO, demo_models
from visard_server.triton import TritonServer

T = TypeVar("T")

CORES = len(os.sched_getaffinity(0))
WINDOW = 2 * CORES + 4  # photos under way at once, as in a run
SETTINGS = Settings(no_face="clean")  # whatever becomes of a face, the time is that of the work


def make_photos(folder: Path, count: int) -> None:
    """Crops of the sample photo, each a little different in size and place."""
    with Image.open(SAMPLE_PHOTO) as image:
        for index in range(count):
            shift = index % 40
            size = 320 + index % 5 * 16
            crop = image.crop((60 + shift, shift // 2, 60 + shift + 300, shift // 2 + 300))
            crop.resize((size, size), Image.Resampling.LANCZOS).save(folder / f"{index:05}.jpg", quality=92)


def align(photos: list[Found], pool: ThreadPoolExecutor) -> list[tuple[Found, Steps, SwapRequest | Product]]:
    """Take every photo to the point where it waits for the server."""

    def one(found: Found) -> tuple[Found, Steps, SwapRequest | Product]:
        work = steps(found.read, found.path, SETTINGS)
        return found, work, advance(work)

    return list(pool.map(one, photos))


async def serve(requests: list[SwapRequest], connection: Connection, window: int) -> list[tuple[Swap, ...]]:
    """Swap the faces of as many photos at once as a run has under way."""
    slots = asyncio.Semaphore(window)
    async with AsyncClient(connection, workers=1) as client:

        async def one(request: SwapRequest) -> tuple[Swap, ...]:
            async with slots:
                return await client.swap(request.aligned, request.direction, request.personas)

        return list(await asyncio.gather(*map(one, requests)))


def write(
    waiting: list[tuple[Found, Steps, SwapRequest | Product]],
    swaps: list[tuple[Swap, ...]],
    target: Path,
    pool: ThreadPoolExecutor,
) -> None:
    """Finish every photo and write it."""
    with Journal(target, {}) as journal:
        writer = Writer(journal)

        def one(photo: tuple[Found, Steps, SwapRequest | Product], answer: tuple[Swap, ...]) -> None:
            found, work, _ = photo
            product = advance(work, answer)
            assert isinstance(product, Product)
            journal.add(writer.store(product, found), found.stamp)

        list(pool.map(one, waiting, swaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many photos to make (default 200)")
    parser.add_argument("--photos", type=Path, help="a folder of photos instead; at most --count of them are used")
    parser.add_argument("--repeats", type=int, default=3, help="how often all four are measured (default 3)")
    parser.add_argument("--server", help="host:port of a running server; the demo models are served here without it")
    arguments = parser.parse_args()

    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch_name, ThreadPoolExecutor(CORES) as pool:
        scratch = Path(scratch_name)
        source = scratch / "photos"
        source.mkdir()
        if arguments.photos is None:
            make_photos(source, arguments.count)
        else:
            for index, found in enumerate(walk(arguments.photos)):
                if index == arguments.count:
                    break
                (source / f"{index:05}{Path(found.path).suffix}").symlink_to(Path(found.file).resolve())
        photos = list(walk(source))
        server = None if arguments.server else TritonServer(demo_models())
        try:
            url = arguments.server
            if server is not None:
                server.start()
                url = server.grpc_url
            connection = Connection(url=url, deadline_s=120)

            def timed(stage: str, work: Callable[..., T], *given: object, **named: object) -> T:
                start = time.perf_counter()
                result = work(*given, **named)
                rates.setdefault(stage, []).append(len(photos) / (time.perf_counter() - start))
                return result

            warm = align(photos[: 4 * CORES], pool)  # detectors are built, and the server has seen its first faces
            asyncio.run(serve([each for _, _, each in warm if isinstance(each, SwapRequest)], connection, WINDOW))
            for repeat in range(arguments.repeats):
                aligned = timed("align-only", align, photos, pool)
                waiting = [each for each in aligned if isinstance(each[2], SwapRequest)]
                requests = [request for _, _, request in waiting]
                swaps = timed("serve-only", lambda *given: asyncio.run(serve(*given)), requests, connection, WINDOW)
                timed("write-only", write, waiting, swaps, scratch / f"w{repeat}", pool)
                job = FolderJob(
                    source=source, target=scratch / f"e{repeat}", connections=(connection,), settings=SETTINGS
                )
                timed("end-to-end", anonymise_folder, job)
        finally:
            if server is not None:
                server.stop()

    medians = {stage: statistics.median(values) for stage, values in rates.items()}
    stages = [medians[stage] for stage in ("align-only", "serve-only", "write-only")]
    ceiling, shared = min(stages), 1 / sum(1 / rate for rate in stages)
    print(f"{len(photos)} photos, {arguments.repeats} repeats, {CORES} cores, {platform.processor() or 'CPU'}")
    for stage, rate in medians.items():
        print(f"{stage:12} {rate:8.2f} photos/s   ({', '.join(f'{value:.2f}' for value in rates[stage])})")
    print(f"end-to-end is {medians['end-to-end'] / ceiling:.1%} of the slowest stage's own rate")
    print(f"all stages on the same cores could reach {shared:.2f} photos/s: {medians['end-to-end'] / shared:.1%} of it")
    figures = {stage.replace("-", "_") + "_per_s": round(rate, 2) for stage, rate in medians.items()}
    print(
        json.dumps(
            {
                "photos": len(photos),
                **figures,
                "of_slowest_stage": round(medians["end-to-end"] / ceiling, 3),
                "of_shared_cores": round(medians["end-to-end"] / shared, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
