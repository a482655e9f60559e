"""Frames per second of `anonymize_video`, compared with what its stages cost by themselves on this machine.

    look    decode, find faces, follow them
    draw    decode, cut faces out, swap, judge, blend, encode

Each stage is measured alone, on as many threads as `anonymize_video` uses. With the models in this process all share
the same cores, so a pass cannot take less than the sum of its stages, which is its ceiling. The clip is made of
generated portraits.

    python -m visard_benchmarks.video                      three people, 1280×720, ten seconds
    python -m visard_benchmarks.video --frames 50 --size 640 360

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from visard import Client, Local
from visard_benchmarks.environment import environment
from visard_benchmarks.rates import CORES
from visard_preprocess.compose import FaceSwap, compose
from visard_preprocess.geometry import crop
from visard_server.embedded import demo_models
from visard_testing.clips import Actor, scene, write_clip
from visard_video import VideoOptions, anonymize_video
from visard_video.cast import verdict
from visard_video.reader import frames, look_into
from visard_video.run import see
from visard_video.tracks import Tracker, small_copy
from visard_video.writer import Writer

T = TypeVar("T")

SAMPLE = 20  # frames in which each stage is measured
GOAL = 0.9  # of the ceiling
PASSES = {"look": ("decode", "find", "follow"), "draw": ("decode", "cut", "swap", "judge", "blend", "encode")}
PEOPLE = "female_49", "male_59", "female_19"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark. Returns what the last line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=250, help="of the clip (default 250)")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 720), metavar=("WIDTH", "HEIGHT"))
    given = parser.parse_args(arguments)
    out, options = Console(stderr=True), VideoOptions()
    with tempfile.TemporaryDirectory() as name, Client(Local(models=demo_models())) as client:
        clip = make_clip(Path(name) / "clip.mp4", given.frames, tuple(given.size))
        stages = measure(client, clip, options)
        report = anonymize_video(client, clip, Path(name) / "out.mp4", options)
    passes = {}
    for part, names in PASSES.items():
        cost = sum(stages[stage] for stage in names)
        ceiling, rate = 1000 / cost, given.frames / report.seconds[part]
        passes[part] = {"ceiling_per_s": ceiling, "frames_per_s": rate, "share": rate / ceiling}
    table = Table("stage", "ms a frame, alone", title=f"{given.frames} frames, {len(report.tracks)} people")
    for stage, cost in stages.items():
        table.add_row(stage, f"{cost:.1f}")
    out.print(table)
    for part, figures in passes.items():
        met = "met" if figures["share"] >= GOAL else "missed"
        out.print(
            f"{part}: {figures['frames_per_s']:.1f} frames/s of {figures['ceiling_per_s']:.1f}, "
            f"{figures['share']:.0%} (goal {GOAL:.0%}, {met})"
        )
    result = {"stages_ms": stages, "passes": passes, "outcomes": dict(report.outcomes), "environment": environment()}
    print(json.dumps(result))
    return result


def make_clip(path: Path, count: int, size: tuple[int, int]) -> Path:
    """Write people who sway before a wall, each a third of the frame wide."""
    edge = min(size[0] / 3, size[1]) * 0.9

    def swaying(place: int, name: str) -> Actor:
        left, top = size[0] * place / 3, (size[1] - edge) / 2
        return Actor(name=name, place=lambda f: (left + edge * 0.04 * np.sin(f / 9 + place), top, edge))

    return write_clip(path, scene([swaying(*each) for each in enumerate(PEOPLE)], count, size))


def measure(client: Client, path: Path, options: VideoOptions) -> dict[str, float]:
    """Each stage by itself: its name → milliseconds a frame."""
    clip = look_into(path, options.max_pixels)
    shown = [frame for frame, _ in zip(frames(clip), range(SAMPLE), strict=False)]
    cost: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        before = time.perf_counter()
        done = work()
        cost[stage] = 1000 * (time.perf_counter() - before) / len(shown)
        return done

    threshold = options.detector_threshold
    with ThreadPoolExecutor(CORES + 2) as pool:

        def together(stage: str, work: Callable[..., T], *items: Iterable[Any]) -> list[T]:
            return list(timed(stage, lambda: list(pool.map(work, *items))))

        list(pool.map(lambda frame: see(frame.pixels, threshold), shown))  # loads the detectors
        timed("decode", lambda: [frame for frame, _ in zip(frames(clip), range(SAMPLE), strict=False)])
        seen = together("find", lambda frame: see(frame.pixels, threshold), shown)
        tracker = Tracker(float(clip.rate), lambda track: None)

        def follow() -> None:
            for frame, found in zip(shown, seen, strict=True):
                size = clip.width, clip.height
                tracker.step(frame.index, small_copy(frame.pixels), found, size, lambda quad: np.zeros(1, np.uint8))

        timed("follow", follow)
        where = [(f, face.quad) for f, each in zip(shown, seen, strict=True) for face in each if face.quad is not None]
        aligned = together("cut", lambda place: crop(place[0].pixels, place[1]), where)
        list(pool.map(lambda face: client.swap(face, "to_male"), aligned[:CORES]))  # loads the models
        swaps = together("swap", lambda face: client.swap(face, "to_male")[0], aligned)
        list(pool.map(lambda face, swap: verdict(face, swap, "to_male", options), aligned[:CORES], swaps))
        together("judge", lambda face, swap: verdict(face, swap, "to_male", options), aligned, swaps)
        placed: dict[int, list[FaceSwap]] = {frame.index: [] for frame in shown}
        for (frame, quad), face, swap in zip(where, aligned, swaps, strict=True):
            placed[frame.index].append(FaceSwap(quad=quad, aligned=face, swapped=swap.swapped))
        drawn = together("blend", lambda frame: compose(frame.pixels, placed[frame.index]), shown)
    writer = Writer(
        path.with_name("alone.mp4"), ".mp4", clip, encoder=options.encoder, quality=options.quality, audio="drop"
    )

    def encode() -> None:
        for frame, pixels in zip(shown, drawn, strict=True):
            writer.write(pixels, frame.time)
        writer.close()

    timed("encode", encode)
    return cost


if __name__ == "__main__":
    main()
