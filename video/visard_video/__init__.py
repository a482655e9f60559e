"""Videos in, anonymised videos out: every face in every frame, one look per person.

    clip ─► look: decode, find faces ─► track ─► cast: one direction and persona a track ─► plan: steady in time
         ─► draw: decode again, swap or cover ─► encode, with or without the sound

A clip is read twice: first to know where everybody is, before and after, then to draw. `tracks` follows faces in both
directions of time, so that a face that is found late is covered from where it came in. What cannot be swapped is
covered; a clip that cannot be read or written to its end leaves no file.

Example:
    >>> with visard.Client("127.0.0.1:8001") as client:
    ...     report = anonymize_video(client, "clip.mp4", "anonymised.mp4")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visard_video.options import VideoOptions
from visard_video.report import VideoReport

if TYPE_CHECKING:
    from visard_video.run import anonymize_video

__all__ = ["VideoOptions", "VideoReport", "anonymize_video"]


def __getattr__(name: str) -> Any:
    if name == "anonymize_video":  # the command line reads options without FFmpeg
        from visard_video.run import anonymize_video

        return anonymize_video
    raise AttributeError(name)
