"""What the tests of whole folders share: small photos with a face, and what a run has left in its output folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from pathlib import Path


def face_photo(
    astronaut: Path, *, brightness: float = 1.0, size: int = 260, box: tuple[int, int, int, int] = (90, 0, 350, 260)
) -> Image.Image:
    """A square photo of the sample's face, `size` pixels wide; dark is female to the tiny models, bright is male."""
    with Image.open(astronaut) as image:
        face = image.convert("RGB").crop(box).resize((size, size), Image.Resampling.LANCZOS)
    return ImageEnhance.Brightness(face).enhance(brightness)


def outputs(target: Path) -> dict[str, bytes]:
    """Relative path → bytes of everything that is visible in an output folder."""
    return {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in sorted(target.rglob("*"))
        if path.is_file() and ".visard" not in path.parts
    }
