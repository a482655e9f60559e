"""What became of a clip: no pixels, no descriptors; where covers stand and where the tracker was unsure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from visard.policy import FaceOutcome, Reason


@dataclass(frozen=True, kw_only=True)
class TrackReport:
    """One person in one shot.

    Attributes:
        number: from 0, in the order in which they were found.
        from_s: when the face is there first, in seconds.
        to_s: when it is there last.
        frames: outcome → in how many frames.
        reasons: why it was covered → in how many frames.
    """

    number: int
    from_s: float
    to_s: float
    frames: dict[FaceOutcome, int]
    reasons: dict[Reason, int]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time in which a face was not detected and its place is that of a tracker: worth a look."""

    track: int
    from_s: float
    to_s: float


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """What became of a clip.

    Attributes:
        frames: how many there are.
        stated_frames: how many there should be by what the file says of itself; None where it says nothing.
        shots: how many of them were told apart.
        tracks: every face that was followed.
        unsure: where to look.
        sound: what became of it; `none` where there was none.
        hdr: `PQ` or `HLG`, which was mapped to the standard range; None where it was not.
        seconds: wall time of the first pass, `look`, and of the second, `draw`.
    """

    frames: int
    stated_frames: int | None
    shots: int
    tracks: tuple[TrackReport, ...]
    unsure: tuple[Span, ...]
    sound: str
    hdr: str | None
    seconds: dict[str, float]

    @property
    def may_be_cut_off(self) -> bool:
        """Whether far fewer frames came than the file says; a sound that is longer than the frames looks the same."""
        return self.stated_frames is not None and self.frames < 0.9 * self.stated_frames

    @property
    def outcomes(self) -> Counter[FaceOutcome]:
        """Faces in frames by outcome."""
        return sum((Counter(track.frames) for track in self.tracks), Counter())

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)
