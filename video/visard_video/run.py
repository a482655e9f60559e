"""The two passes over a clip, in their order; decoding, work on pixels, the server and the encoder overlap."""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from visard.pipeline import unswappable
from visard.policy import FaceOutcome, Reason, withheld
from visard_errors import NoFace, OutputError
from visard_preprocess.align import finder
from visard_preprocess.compose import FaceSwap, compose
from visard_preprocess.cover import cover
from visard_preprocess.detect import detect
from visard_preprocess.files import replace_atomically
from visard_preprocess.geometry import crop
from visard_preprocess.machine import cores
from visard_preprocess.upright import pose_of
from visard_video.cast import Role, cast, verdict
from visard_video.options import FORMATS, VideoOptions
from visard_video.plan import Step, plan
from visard_video.reader import Clip, frames, look_into
from visard_video.report import Span, TrackReport, VideoReport
from visard_video.tracks import LOWEST, Seen, Track, Tracker, small_copy
from visard_video.writer import Writer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from visard import Client
    from visard_video.reader import Frame

R = TypeVar("R")

_AHEAD, _AHEAD_BYTES = 2, 512 * 2**20  # frames under way: for each thread, and all of them together


def anonymize_video(
    client: Client,
    source: str | PathLike[str],
    target: str | PathLike[str],
    options: VideoOptions | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, of: None,
) -> VideoReport:
    """Swap or cover every face in every frame of a clip.

    Args:
        client: swaps faces.
        source: a file that FFmpeg reads.
        target: the file to write, .mp4, .mov or .mkv; it appears when it is whole.
        options: what to do.
        workers: threads, of 100 MB each; two more than there are cores by default, because some wait for the server.
        progress: called after each frame with the stage (`look`, `draw`), how many are done, and of how many.

    Raises:
        PhotoError: the clip cannot be read, shows no face, or is withheld for one of them.
        ServerError: the server did not answer as it should.
        OutputError: the clip cannot be written.
    """
    options = options or VideoOptions()
    path = Path(target)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"'{path.name}' cannot be written: choose a name that ends with {', '.join(FORMATS)}")
    if path.exists() and path.samefile(source):
        raise OutputError(f"'{path}' is the clip itself: choose another name")
    clip = look_into(source, options.max_pixels)
    with ThreadPoolExecutor(workers or 2 + cores(), thread_name_prefix="visard-video") as pool:
        run = _Run(client=client, clip=clip, options=options, pool=pool, progress=progress)
        run.look()
        if not run.roles:
            raise NoFace(f"no face was found in '{clip.path}': a lower detector_threshold finds more")
        if options.unswapped == "withhold" and (reasons := run.planned_reasons()):
            raise withheld(reasons)
        try:
            replace_atomically(path, partial(run.draw, path.suffix.lower()))
        except OSError as error:
            raise OutputError(f"'{path}' cannot be written ({error.strerror}): choose another folder") from error
    return run.report()


@dataclass(kw_only=True, eq=False)
class _Run:
    client: Client
    clip: Clip
    options: VideoOptions
    pool: ThreadPoolExecutor
    progress: Callable[[str, int, int | None], None]
    steps: dict[int, list[Step]] = field(default_factory=lambda: defaultdict(list))
    roles: dict[int, Role] = field(default_factory=dict)
    unsure: list[tuple[int, int, int]] = field(default_factory=list)  # track, first and last frame
    drawn: dict[int, Counter[Reason | None]] = field(default_factory=lambda: defaultdict(Counter))
    times: list[int] = field(default_factory=list)
    shots: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    seed: int = field(default_factory=lambda: secrets.randbits(128), repr=False)  # of the covers

    def look(self) -> None:
        """Find out where everybody is, and who becomes whom."""
        began = time.monotonic()
        casting: deque[tuple[Track, Future[Role]]] = deque()

        def done(track: Track) -> None:
            casting.append((track, self.pool.submit(cast, self.client, track, self.options)))

        tracker = Tracker(float(self.clip.rate), done)
        size = self.clip.width, self.clip.height
        for frame, (copy, seen) in self._in_order(self._look_at, frames(self.clip)):
            tracker.step(frame.index, copy, seen, size, partial(crop, frame.pixels))
            self.times.append(frame.time)
            self.progress("look", frame.index + 1, self.clip.frames)
            while casting and casting[0][1].done():
                track, role = casting.popleft()
                self._take(track, role.result())
        tracker.end()
        for track, role in casting:
            self._take(track, role.result())
        self.shots = 1 + len(tracker.cuts)
        self.seconds["look"] = time.monotonic() - began

    def planned_reasons(self) -> list[Reason]:
        """Why faces are to be covered, of every face in every frame that is."""
        steps = (step for steps in self.steps.values() for step in steps)
        found = (self.roles[step.track].reason or step.reason for step in steps)
        return [reason for reason in found if reason is not None]

    def draw(self, suffix: str, draft: Path) -> None:
        """Write the new clip."""
        began = time.monotonic()
        options = self.options
        writer = Writer(draft, suffix, self.clip, encoder=options.encoder, quality=options.quality, audio=options.audio)
        try:
            for frame, (pixels, reasons) in self._in_order(self._draw, frames(self.clip)):
                for track, reason in reasons:
                    self.drawn[track][reason] += 1
                failed = [reason for _, reason in reasons if reason is not None]
                if failed and options.unswapped == "withhold":
                    raise withheld(failed)
                writer.write(pixels, frame.time)
                self.progress("draw", frame.index + 1, len(self.times))
        except BaseException:
            writer.abandon()
            raise
        writer.close()
        self.seconds["draw"] = time.monotonic() - began

    def report(self) -> VideoReport:
        """Sum up."""
        at = [float(time * self.clip.time_base) for time in self.times]
        spans: dict[int, list[int]] = defaultdict(list)
        for frame, steps in self.steps.items():
            for step in steps:
                spans[step.track].append(frame)
        tracks = []
        for number, counts in sorted(self.drawn.items()):
            outcomes: dict[FaceOutcome, int] = {"swapped": counts[None], "covered": counts.total() - counts[None]}
            tracks.append(
                TrackReport(
                    number=number,
                    from_s=round(at[min(spans[number])], 3),
                    to_s=round(at[max(spans[number])], 3),
                    frames=outcomes,
                    reasons={reason: count for reason, count in counts.items() if reason is not None},
                )
            )
        sound = self.options.audio if self.clip.sound else "none"
        return VideoReport(
            frames=len(at),
            stated_frames=self.clip.frames,
            shots=self.shots,
            tracks=tuple(tracks),
            unsure=tuple(
                Span(track=track, from_s=round(at[first], 3), to_s=round(at[last], 3))
                for track, first, last in sorted(self.unsure)
            ),
            sound=sound,
            hdr=self.clip.hdr,
            seconds={stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        )

    def _in_order(self, work: Callable[[Frame], R], items: Iterable[Frame]) -> Iterator[tuple[Frame, R]]:
        """Work on several frames at once, and give them with their results in their order."""
        pending: deque[tuple[Frame, Future[R]]] = deque()
        in_memory = _AHEAD_BYTES // (3 * self.clip.width * self.clip.height)
        window = max(1, min(_AHEAD * self.pool._max_workers, in_memory))
        try:
            for frame in items:
                pending.append((frame, self.pool.submit(work, frame)))
                if len(pending) >= window:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _look_at(self, frame: Frame) -> tuple[NDArray[np.uint8], list[Seen]]:
        return small_copy(frame.pixels), see(frame.pixels, self.options.detector_threshold)

    def _take(self, track: Track, role: Role) -> None:
        """Plan a track's frames."""
        self.roles[track.number] = role.like(self.roles.values())
        for frame, step in plan(track).items():
            self.steps[frame].append(step)
        for sure, group in groupby(track.seen.items(), lambda item: item[1].sure):
            if not sure:
                found = [frame for frame, _ in group]
                self.unsure.append((track.number, found[0], found[-1]))

    def _draw(self, frame: Frame) -> tuple[NDArray[np.uint8], list[tuple[int, Reason | None]]]:
        """Give a frame without its faces, and why each of them is covered."""
        options = self.options
        swaps: list[FaceSwap] = []
        covered: list[Step] = []
        reasons: list[tuple[int, Reason | None]] = []
        for step in self.steps.get(frame.index, []):
            role = self.roles[step.track]
            reason = role.reason or step.reason
            if reason is None and step.quad is not None:
                aligned = crop(frame.pixels, step.quad)
                (swap,) = self.client.swap(aligned, role.direction, [role.persona])
                reason = verdict(aligned, swap, role.direction, options)
                if reason is None:
                    swaps.append(FaceSwap(quad=step.quad, aligned=aligned, swapped=swap.swapped))
            if reason is not None:
                covered.append(step)
            reasons.append((step.track, reason))
        pixels = compose(frame.pixels, swaps)
        for step in covered:
            cover(pixels, [step.box], options.cover, np.random.default_rng([self.seed, step.track]))
        return pixels, reasons


def see(pixels: NDArray[np.uint8], threshold: float) -> list[Seen]:
    """Find the faces of one frame, (H, W, 3) uint8 RGB; those that score less than the threshold are unsure."""
    look = finder()
    seen = []
    for found in detect(pixels, min(LOWEST, threshold)):
        if found.score < threshold:
            seen.append(Seen(box=found.box))
            continue
        face = look.face_of(pixels, pose_of(found), found.score)
        quad = None if face.landmarks is None else face.quad
        seen.append(Seen(box=face.box, sure=True, quad=quad, reason=unswappable(face)))
    return seen
