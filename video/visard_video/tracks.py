"""Who is where in every frame: faces followed through a shot, forwards and backwards. No pixels are decoded here.

Detections are joined from frame to frame in the order of ByteTrack (Zhang et al., ECCV 2022): the sure ones first, then
the unsure ones with the tracks that are left, so that an unsure face is only believed where one was before. What is
seen nowhere is followed by dlib's correlation tracker (Danelljan et al., BMVC 2014): forwards where a face is lost,
backwards where one comes up late, for a few seconds and never beyond a cut. Every box of a track hides a face, so it is
better to have one too many.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment

from visard_preprocess.detect import iou
from visard_preprocess.follow import Follower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from visard.policy import Reason
    from visard_preprocess.geometry import Box, Quad

LOWEST = 0.3  # score of an unsure detection
SAMPLES, _SAMPLE_EVERY_S = 3, 0.3  # of each track: aligned faces, by which direction and persona are chosen

_FOLLOW_S = 2.0  # how long a face is followed that no detector sees
_DOUBT_S = 0.5  # the same, and how long unsure detections count, of what never was a clear face: it may be a flower pot
_SAME_IOU = 0.25  # boxes of one face in two frames that follow each other
_SPEED_OVER = 5  # frames by which the speed of a hidden face is told
_NEAR, _SIMILAR = 1.0, 0.6  # of its edge: how far from there it may come up again, and how much smaller
_COPY_EDGE = 640  # longer edge of the copies in which faces are followed
# Correlation of two frames, in coarse grey, below which they are of two shots, where the frame before was more alike.
_CUT, _CUT_LESS = 0.5, 0.3
_COARSE = (32, 18)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One face in one frame.

    Attributes:
        box: (left, top, right, bottom) in pixels of the frame.
        sure: whether the detector was, or else unsure, or it was only followed.
        quad: where its crop lies, by its landmarks; None where they cannot be trusted.
        reason: why it cannot be swapped by itself, as of photos; None where it can.
    """

    box: Box
    sure: bool = False
    quad: Quad | None = None
    reason: Reason | None = "unclear"


@dataclass(kw_only=True, eq=False)
class Track:
    """One person in one shot.

    Attributes:
        number: from 0, in the order in which they were found.
        seen: frame → where the face is; ordered by frame once it is done. Nothing where it was hidden behind something.
        samples: aligned faces, (512, 512, 3) uint8 RGB.
    """

    number: int
    seen: dict[int, Seen] = field(default_factory=dict)
    samples: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)
    last_sample: int | None = None
    follower: Follower | None = field(default=None, repr=False)
    lost: int = 0  # frames since it was detected
    sure: int = 0  # the last frame in which the detector was sure
    clear: bool = False  # whether it ever was a face that can be swapped, and so surely one

    def at(self, frame: int) -> Box:
        """Where it is expected: as far on as in the frame before."""
        now = np.array(self.seen[frame - 1].box)
        before = self.seen.get(frame - 2)
        if before is None or self.lost:
            return self.seen[frame - 1].box
        expected: Box = tuple(map(float, 2 * now - np.array(before.box)))  # type: ignore[assignment]
        return expected if iou(expected, self.seen[frame - 1].box) > 0 else self.seen[frame - 1].box

    def apart(self, frame: int, box: Box) -> float:
        """How far a box lies from where a hidden face would be by now, as fast as it was last; in edges of the face."""
        clear = [each for each, seen in self.seen.items() if seen.reason is None][-_SPEED_OVER:]
        first, last = (clear or [max(self.seen)])[0], (clear or [max(self.seen)])[-1]
        centres = [_centre(self.seen[each].box) for each in (first, last)]
        speed = (centres[1] - centres[0]) / max(1, last - first)
        edge = self.seen[last].box[3] - self.seen[last].box[1]
        far = float(np.linalg.norm(_centre(box) - centres[1] - speed * (frame - last))) / edge
        return far if _SIMILAR < (box[3] - box[1]) / edge < 1 / _SIMILAR else math.inf


class Tracker:
    """Takes what is seen in each frame and gives the tracks that are done.

    Args:
        rate: frames per second.
        done: takes a track whose shot or face has ended.
    """

    def __init__(self, rate: float, done: Callable[[Track], None]) -> None:
        self.cuts: list[int] = []
        self._done = done
        self._reach = max(1, round(_FOLLOW_S * rate))
        self._doubt = max(1, round(_DOUBT_S * rate))
        self._sample_every = max(1, round(_SAMPLE_EVERY_S * rate))
        self._tracks: list[Track] = []
        self._hidden: list[Track] = []  # behind something, or gone
        self._count = 0
        self._copies: deque[NDArray[np.uint8]] = deque(maxlen=self._reach)  # of the frames before
        self._unsure: list[list[Seen]] = []  # of all frames of the shot, those that no track has taken
        self._coarse: NDArray[np.float32] | None = None
        self._alike = 1.0

    def step(
        self,
        frame: int,
        copy: NDArray[np.uint8],
        seen: Sequence[Seen],
        size: tuple[int, int],
        sample: Callable[[Quad], NDArray[np.uint8]],
    ) -> None:
        """Take one frame.

        Args:
            frame: its index; they come in their order.
            copy: see `small_copy`.
            seen: faces, sure and unsure.
            size: width and height of the frame.
            sample: cuts an aligned face out of the frame.
        """
        if self._is_cut(copy):
            self.cuts.append(frame)
            self.end()
            self._copies.clear()
            self._unsure.clear()
        scale = copy.shape[1] / size[0]
        sure = [each for each in seen if each.sure]
        unsure = [each for each in seen if not each.sure]
        waiting = list(self._tracks)
        boxes = {id(track): track.at(frame) for track in waiting}
        for track in waiting:
            if track.follower is not None:
                boxes[id(track)] = track.follower.step(copy)
        for kind in (sure, unsure):
            believed = [track for track in waiting if kind is sure or self._lasts(track, frame)]
            for track, found in _match(believed, kind, boxes):
                waiting.remove(track)
                kind.remove(found)
                self._put(track, frame, found, sample)
        for track in waiting:
            self._lose(track, frame, copy, boxes[id(track)], scale, size)
        for track in [each for each in self._hidden if frame - max(each.seen) > self._reach]:
            self._hidden.remove(track)
            self._finish(track)
        for found in sure:
            track = self._back(frame, found) or self._new()
            self._tracks.append(track)
            self._put(track, frame, found, sample)
            self._look_back(track, frame, copy, scale, size)
        self._copies.append(copy)
        self._unsure.append(unsure)

    def end(self) -> None:
        """Let all tracks end: the clip or the shot is over."""
        for track in (*self._tracks, *self._hidden):
            self._finish(track)
        self._tracks, self._hidden = [], []

    def _back(self, frame: int, found: Seen) -> Track | None:
        """Who was hidden, or is followed by mistake, and is there again."""
        lost = [track for track in (*self._hidden, *self._tracks) if frame not in track.seen or track.lost]
        nearest = min(lost, key=lambda track: track.apart(frame, found.box), default=None)
        if nearest is None or nearest.apart(frame, found.box) > _NEAR:
            return None
        (self._hidden if nearest in self._hidden else self._tracks).remove(nearest)
        return nearest

    def _new(self) -> Track:
        self._count += 1
        return Track(number=self._count - 1)

    def _is_cut(self, copy: NDArray[np.uint8]) -> bool:
        coarse = np.asarray(Image.fromarray(copy).resize(_COARSE, Image.Resampling.BOX), np.float32)
        before, self._coarse = self._coarse, coarse
        if before is None:
            return False
        a, b = before - before.mean(), coarse - coarse.mean()
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        alike = float((a * b).sum()) / norm if norm > 0 else float(np.abs(before - coarse).mean() < 16)
        cut = alike < min(_CUT, self._alike - _CUT_LESS)
        self._alike = 1.0 if cut else alike
        return cut

    def _put(self, track: Track, frame: int, found: Seen, sample: Callable[[Quad], NDArray[np.uint8]]) -> None:
        track.seen[frame] = found
        track.lost, track.follower = 0, None
        if found.sure:
            track.sure = frame
        if found.quad is None or found.reason is not None:
            return
        track.clear = True
        due = track.last_sample is None or frame - track.last_sample >= self._sample_every
        if due and len(track.samples) < SAMPLES:
            track.samples.append(sample(found.quad))
            track.last_sample = frame

    def _lasts(self, track: Track, frame: int) -> bool:
        """Whether to believe unsure detections: of what never was a clear face, only near a sure one in time."""
        return track.clear or frame - track.sure <= self._doubt

    def _lose(
        self, track: Track, frame: int, copy: NDArray[np.uint8], box: Box, scale: float, size: tuple[int, int]
    ) -> None:
        """Follow a face that is not detected; or let it go."""
        track.lost += 1
        if track.follower is None:
            track.follower = Follower(self._copies[-1], track.seen[frame - 1].box, scale)
            box = track.follower.step(copy)
        gone = track.lost > self._reach or not _inside(box, size) or not track.follower.sure
        if gone or not self._lasts(track, frame):
            self._tracks.remove(track)
            self._hidden.append(track)
            track.follower = None
            return
        track.seen[frame] = Seen(box=box)

    def _look_back(
        self, track: Track, frame: int, copy: NDArray[np.uint8], scale: float, size: tuple[int, int]
    ) -> None:
        """Find where a face came from that was just detected for the first time."""
        box = track.seen[frame].box
        follower: Follower | None = None
        newer: NDArray[np.uint8] | None = copy
        for back in range(1, 1 + (len(self._unsure) if track.clear else min(len(self._unsure), self._doubt))):
            if frame - back in track.seen:
                break
            unsure = self._unsure[-back]
            older = self._copies[-back] if back <= len(self._copies) else None
            found = max(unsure, key=lambda each: iou(each.box, box), default=None)
            if found is not None and iou(found.box, box) >= _SAME_IOU:
                follower = None
                track.seen[frame - back] = found
                unsure.remove(found)
            elif older is None or newer is None:
                break
            else:
                follower = follower or Follower(newer, box, scale)
                followed = follower.step(older)
                if not follower.sure or not _inside(followed, size):
                    break
                track.seen[frame - back] = Seen(box=followed)
            box, newer = track.seen[frame - back].box, older

    def _finish(self, track: Track) -> None:
        track.seen = dict(sorted(track.seen.items()))
        self._done(track)


def small_copy(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce a frame, (H, W, 3) uint8 RGB, to the grey copy in which faces are followed: (h, w) uint8."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_COPY_EDGE, _COPY_EDGE), Image.Resampling.BOX)
    return np.asarray(picture.convert("L"))


def _match(tracks: Sequence[Track], seen: Sequence[Seen], boxes: dict[int, Box]) -> Iterable[tuple[Track, Seen]]:
    """Join tracks and faces so that boxes overlap the most in all."""
    overlaps = np.array([[iou(boxes[id(track)], each.box) for each in seen] for track in tracks])
    if not overlaps.size:
        return []
    rows, columns = linear_sum_assignment(-overlaps)
    return [(tracks[r], seen[c]) for r, c in zip(rows, columns, strict=True) if overlaps[r, c] >= _SAME_IOU]


def _centre(box: Box) -> NDArray[np.float64]:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _inside(box: Box, size: tuple[int, int]) -> bool:
    """Whether the middle of a box lies in the frame."""
    return 0 <= (box[0] + box[2]) / 2 < size[0] and 0 <= (box[1] + box[3]) / 2 < size[1]
