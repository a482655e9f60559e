"""Clips as frames: decoded by FFmpeg (PyAV), upright, in eight bits of standard colours.

Only the frames and the sound are read. Subtitles, data (where phones and drones write positions), covers and all
metadata stay behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike, fspath
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from visard_errors import PhotoTooLarge, UnreadableVideo
from visard_video.colours import from_hdr

# Single files: no playlist, which may name others, on this machine or elsewhere.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,ivf,m4v"
_HD_HEIGHT = 720  # from here on, colours that are not named are those of BT.709, below those of BT.601
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their number in ITU-T H.273


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is known of a clip before it is decoded.

    Attributes:
        path: of the file.
        width: of a frame as it is shown, in pixels.
        height: likewise.
        rate: frames per second, on average.
        time_base: seconds of one unit of the frames' times.
        frames: how many there are, as the file says or by its duration; None where it says neither.
        aspect: width of a pixel divided by its height.
        hdr: `PQ` or `HLG` where the clip has a high dynamic range, which is mapped to the standard one.
        sound: whether there is any.
    """

    path: str
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    frames: int | None
    aspect: Fraction
    hdr: str | None
    sound: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        index: from 0.
        time: in units of the clip's time base.
        pixels: (H, W, 3) uint8 RGB, upright.
    """

    index: int
    time: int
    pixels: NDArray[np.uint8] = field(repr=False)


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Any]:
    """Open a file with FFmpeg.

    Raises:
        UnreadableVideo: it is no clip, or damaged, also where that is noticed in the body.
    """
    name = fspath(path)
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        with av.open(name, options=options, metadata_errors="replace") as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise UnreadableVideo(f"'{name}' cannot be read: {error.strerror}") from None
        raise UnreadableVideo(f"'{name}' is no video, or damaged ({error.strerror}): make it anew, or cut it") from None


def look_into(path: str | PathLike[str], max_pixels: int) -> Clip:
    """Read what a clip says of itself, and decode its first frame.

    Raises:
        UnreadableVideo: it is no clip, or has no frame.
        PhotoTooLarge: its frames have more pixels than allowed.
    """
    with opened(path) as container:
        stream = _stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise PhotoTooLarge(
                f"'{fspath(path)}' has frames of {width}×{height} pixels, more than {max_pixels:,} in all"
            )
        first = next(container.decode(stream), None)
        if first is None:
            raise UnreadableVideo(f"'{fspath(path)}' has no frames")
        turned = _quarter_turns(first) % 2
        aspect = stream.sample_aspect_ratio or Fraction(1)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return Clip(
            path=fspath(path),
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            rate=rate,
            time_base=stream.time_base,
            frames=stream.frames or _estimate(container, rate),
            aspect=1 / aspect if turned else aspect,
            hdr=_HDR.get(int(first.color_trc)),
            sound=bool(container.streams.audio),
        )


def frames(clip: Clip) -> Iterator[Frame]:
    """Decode a clip.

    Raises:
        UnreadableVideo: it breaks off, or a frame has another size than the first.
    """
    with opened(clip.path) as container:
        stream = _stream(container, clip.path)
        stream.thread_type = "AUTO"
        last = -1
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise UnreadableVideo(f"'{clip.path}' is damaged after {index} frames: cut it there, or make it anew")
            pixels = np.ascontiguousarray(np.rot90(_rgb(frame, clip.hdr), _quarter_turns(frame)))
            if pixels.shape != (clip.height, clip.width, 3):
                raise UnreadableVideo(f"'{clip.path}' changes its size after {index} frames: divide it there")
            # Times have to grow; a frame without one comes as soon after the last as can be told.
            last = max(last + 1, last + 1 if frame.pts is None else frame.pts)
            yield Frame(index=index, time=last, pixels=pixels)


def _stream(container: Any, path: str | PathLike[str]) -> Any:
    streams = [each for each in container.streams.video if not each.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise UnreadableVideo(f"'{fspath(path)}' has no frames: it is a sound or a picture")
    return streams[0]


def _estimate(container: Any, rate: Fraction) -> int | None:
    """How many frames there should be where the file does not count them."""
    return round(container.duration / av.time_base * rate) if container.duration else None


def _quarter_turns(frame: Any) -> int:
    """How often to turn a frame counterclockwise by 90 degrees, as a player does."""
    turns: int = round(frame.rotation / 90) % 4
    return turns


def _rgb(frame: Any, hdr: str | None) -> NDArray[np.uint8]:
    colours = int(frame.colorspace)
    if colours not in set(Colorspace):  # not named
        colours = Colorspace.ITU709 if min(frame.width, frame.height) >= _HD_HEIGHT else Colorspace.ITU601
    full = ColorRange.JPEG if frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj") else None
    shown = {"src_colorspace": colours, "src_color_range": full or ColorRange.MPEG, "dst_color_range": ColorRange.JPEG}
    if frame.format.is_rgb or frame.format.name.startswith("gray"):
        shown = {}
    if hdr is None:
        pixels: NDArray[np.uint8] = frame.reformat(format="rgb24", **shown).to_ndarray()
        return pixels
    return from_hdr(frame.reformat(format="rgb48le", **shown).to_ndarray(), hdr)
