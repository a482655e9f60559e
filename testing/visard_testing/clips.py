"""Clips of people who do not exist, whose places in every frame are known."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from PIL import Image

from visard_testing.people_photos import PEOPLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

RATE = 25
WALL = 128, 132, 140


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A portrait that moves.

    Attributes:
        name: of a file in `people`.
        place: frame → left edge, top edge and edge of the square portrait in pixels; None where it is not there.
        light: frame → factor of its brightness.
    """

    name: str
    place: Callable[[int], tuple[float, float, float] | None]
    light: Callable[[int], float] = lambda frame: 1.0


def scene(actors: Iterable[Actor], frames: int, size: tuple[int, int] = (640, 360)) -> list[NDArray[np.uint8]]:
    """Draw actors before a wall, the last ones in front: (H, W, 3) uint8 RGB each."""
    portraits = [(actor, Image.open(PEOPLE / f"{actor.name}.jpg").convert("RGB")) for actor in actors]
    drawn = []
    for frame in range(frames):
        picture = Image.new("RGB", size, WALL)
        for actor, portrait in portraits:
            place = actor.place(frame)
            if place is None:
                continue
            left, top, edge = place
            lit = portrait.point(lambda level, actor=actor, frame=frame: int(level * actor.light(frame)))
            affine = (512 / edge, 0, -left * 512 / edge, 0, 512 / edge, -top * 512 / edge)  # to a part of a pixel
            small = lit.reduce(2) if edge < 256 else lit
            scale = small.width / 512
            moved = small.transform(size, Image.Transform.AFFINE, [v * scale for v in affine], Image.Resampling.BICUBIC)
            x, y = np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5
            inside = (x >= left) & (x < left + edge) & (y >= top) & (y < top + edge)
            picture.paste(moved, mask=Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)))
        drawn.append(np.asarray(picture))
    return drawn


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    times: Callable[[int], int] = lambda index: index,
    sound: NDArray[np.float32] | None = None,
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
    metadata: dict[str, str] | None = None,
    configure: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Write frames as a clip of 25 frames a second, with 48 kHz mono sound of (N,) float32 if there is any."""
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        frames = list(frames)
        stream: Any = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.options = {"crf": "14", "preset": "ultrafast"}
        configure(stream)
        if sound is not None:
            heard: Any = container.add_stream("aac", rate=48000)
            heard.codec_context.layout = "mono"
            voice = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
            voice.sample_rate, voice.pts = 48000, 0
            container.mux(heard.encode(voice))
            container.mux(heard.encode(None))
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = times(index), Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_clip(path: Path) -> list[NDArray[np.uint8]]:
    """Decode a clip by itself, as another program would: (H, W, 3) uint8 RGB each."""
    with av.open(str(path)) as container:
        frames: list[NDArray[np.uint8]] = [
            frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False) for frame in container.decode(video=0)
        ]
        return frames
