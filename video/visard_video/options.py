"""What a caller can ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from typing_extensions import Doc

from visard.declared import check
from visard.options import CoverOption, DetectorThreshold, DirectionOption, IdentityOption, MinConfidence, PersonaKey
from visard_preprocess import DETECTOR_THRESHOLD, MAX_PIXELS

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # that are written: suffix → FFmpeg's name

Audio = Literal["drop", "keep", "disguise"]
Encoder = Literal["h264", "h265", "av1", "h264_nvenc"]


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What to do with a clip.

    Raises:
        ValueError: a value is out of its range.
    """

    direction: DirectionOption = "opposite"
    detector_threshold: DetectorThreshold = DETECTOR_THRESHOLD
    min_confidence: MinConfidence = 0.5
    unswapped: Annotated[
        Literal["cover", "withhold"],
        Doc("A face that could not be swapped well enough in a frame: cover it there, or write no clip at all."),
    ] = "cover"
    cover: CoverOption = "soft"
    identity: IdentityOption = True
    persona_key: PersonaKey = None
    link_people: Annotated[
        bool,
        Doc("One look for whoever a recogniser takes for the same person, also after a cut; else one in each track."),
    ] = False
    audio: Annotated[
        Audio,
        Doc(
            "What becomes of the sound, by which people are recognised, too: left out, kept as it is, or lower by four "
            "semitones, which disguises a voice but can be undone."
        ),
    ] = "drop"
    encoder: Annotated[Encoder, Doc("How the clip is encoded; h264_nvenc needs an NVIDIA GPU.")] = "h264"
    quality: Annotated[
        int, Interval(ge=0, le=51), Doc("Constant quality of the encoder: lower is better, and larger.")
    ] = 18
    max_pixels: Annotated[int, Interval(ge=1), Doc("Most pixels of a frame.")] = MAX_PIXELS

    def __post_init__(self) -> None:
        """Check ranges."""
        check(self)
