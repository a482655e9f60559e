"""What is still recognised of faces under each cover, and under covers that are not offered because of it.

    python -m visard_benchmarks.covers london/ --suffix _neutral.jpg --again _smiling.jpg --recogniser sface.onnx

takes a folder of portraits, one face each. Of every style it says how often a detector still sees a face in its place,
and how many people are found among all: by recognisers, which compare the covered crop with the uncovered photos; and
by somebody who covers the photos of everybody in the same way and compares what the covers show, pixel by pixel: with
the very photo, and with another photo of each person (McPherson, Shokri and Shmatikov, Defeating Image Obfuscation with
Deep Learning, 2016, do this with a network). Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from visard_evaluation.recognisers import DlibRecogniser, OnnxRecogniser, View
from visard_preprocess.align import finder
from visard_preprocess.cover import cover
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from visard_preprocess.align import Face

_TILE = 64  # edge of the crop that is compared pixel by pixel
_SFACE_THRESHOLD = 1.128  # cosine 0.363 in Euclidean distance


def head(face: Face, photo: NDArray[np.uint8]) -> tuple[slice, slice]:
    """The rectangle around the head that `visard_preprocess.cover` covers."""
    left, top, right, bottom = face.box
    width, height = right - left, bottom - top
    x0, x1 = (left + right) / 2 - 1.1 * width, (left + right) / 2 + 1.1 * width
    y0, y1 = top - 0.9 * height, bottom + 0.5 * height
    return (
        slice(max(0, int(y0)), min(photo.shape[0], int(y1))),
        slice(max(0, int(x0)), min(photo.shape[1], int(x1))),
    )


def blurred(share: float) -> Callable[[NDArray[np.uint8], Face], None]:
    """A Gaussian blur over the head; sigma as a share of the face's box."""

    def cover_with(photo: NDArray[np.uint8], face: Face) -> None:
        region = photo[head(face, photo)]
        region[...] = np.asarray(Image.fromarray(region).filter(ImageFilter.GaussianBlur(share * face.size_px)))

    return cover_with


def squared(cells: int) -> Callable[[NDArray[np.uint8], Face], None]:
    """A mosaic over the head; so many squares along the face's box."""

    def cover_with(photo: NDArray[np.uint8], face: Face) -> None:
        region = photo[head(face, photo)]
        height, width = region.shape[:2]
        few = [max(1, round(edge * cells / face.size_px)) for edge in (width, height)]
        small = Image.fromarray(region).resize((few[0], few[1]), Image.Resampling.BOX)
        region[...] = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))

    return cover_with


COVERS: dict[str, Callable[[NDArray[np.uint8], Face], None]] = {
    "uncovered": lambda photo, face: None,
    "blur, sigma 5 % of the face": blurred(0.05),
    "blur, sigma 10 % of the face": blurred(0.10),
    "blur, sigma 20 % of the face": blurred(0.20),
    "mosaic, 16 squares a face": squared(16),
    "mosaic, 8 squares a face": squared(8),
    "mosaic, 4 squares a face": squared(4),
    "soft": lambda photo, face: cover(photo, [face.box], "soft"),
    "mosaic": lambda photo, face: cover(photo, [face.box], "mosaic"),
    "solid": lambda photo, face: cover(photo, [face.box], "solid"),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suffix", default=".jpg", help="how the names of the photos end")
    parser.add_argument("--again", help="how the name of another photo of the same person ends")
    parser.add_argument("--recogniser", type=Path, help="SFace, as ONNX")
    parser.add_argument("--save", type=Path, help="folder for a picture of each style, to look at (shows faces!)")
    args = parser.parse_args(arguments)
    recognisers: list[Any] = [DlibRecogniser()]
    if args.recogniser is not None:
        recognisers.append(
            OnnxRecogniser("sface", args.recogniser, input_size=112, threshold=_SFACE_THRESHOLD, raw=True)
        )
    paths = sorted(args.folder.glob(f"*{args.suffix}"))
    photos = _largest([read_photo(path) for path in paths])
    again = []
    if args.again:
        again = _largest([read_photo(str(path).removesuffix(args.suffix) + args.again) for path in paths])
    faces = [face for _, face in photos]
    landmarks = [finder().landmarks(crop(photo, face.quad)) for photo, face in photos]
    originals = _views([photo for photo, _ in photos], faces, landmarks)
    known = {each.name: each.describe(originals) for each in recognisers}
    summary: dict[str, Any] = {"photos": len(photos), "covers": {}}
    for name, cover_with in COVERS.items():
        covered = [_covered(photo, face, cover_with) for photo, face in photos]
        views = _views(covered, faces, landmarks)
        row: dict[str, float] = {"seen": float(np.mean([_seen(*each) for each in zip(covered, faces, strict=True)]))}
        for each in recognisers:
            distances = np.linalg.norm(each.describe(views)[:, None] - known[each.name][None], axis=2)
            row[f"{each.name}_same"] = float((np.diag(distances) < each.threshold).mean())
            row[f"{each.name}_found"] = _found(distances)
        tiles = [_tile(photo, face) for photo, face in zip(covered, faces, strict=True)]
        for what, others in (("same_photo", photos), ("other_photo", again)):
            if others:
                anew = [_tile(_covered(photo, face, cover_with), face) for photo, face in others]
                row[f"covered_{what}_found"] = _found(np.linalg.norm(np.stack(tiles)[:, None] - np.stack(anew), axis=2))
        summary["covers"][name] = {key: round(value, 3) for key, value in row.items()}
        print(f"{name:30}", "  ".join(f"{key} {value:5.0%}" for key, value in row.items()), flush=True)
        if args.save is not None:
            args.save.mkdir(parents=True, exist_ok=True)
            shown = np.hstack([np.asarray(Image.fromarray(each).resize((256, 256))) for each in covered[:6]])
            Image.fromarray(shown).save(args.save / f"{name.replace(' ', '_').replace('%', '')}.png")
    print(json.dumps(summary))
    return summary


def _largest(photos: list[NDArray[np.uint8]]) -> list[tuple[NDArray[np.uint8], Face]]:
    return [(photo, finder().find(photo)[0]) for photo in photos]


def _covered(
    photo: NDArray[np.uint8], face: Face, cover_with: Callable[[NDArray[np.uint8], Face], None]
) -> NDArray[np.uint8]:
    result = photo.copy()
    cover_with(result, face)
    return result


def _seen(covered: NDArray[np.uint8], face: Face) -> bool:
    """Whether the detector finds a face there."""
    left, top, right, bottom = face.box
    return any(
        left < (each.box[0] + each.box[2]) / 2 < right and top < (each.box[1] + each.box[3]) / 2 < bottom
        for each in finder().find(covered)
    )


def _views(
    photos: Sequence[NDArray[np.uint8]], faces: Sequence[Face], landmarks: Sequence[NDArray[np.float64]]
) -> list[View]:
    """The crops where the faces were, with the originals' landmarks: the worst case."""
    return [
        View(aligned=crop(photo, face.quad), landmarks=points)
        for photo, face, points in zip(photos, faces, landmarks, strict=True)
    ]


def _tile(photo: NDArray[np.uint8], face: Face) -> NDArray[np.float64]:
    """What a cover shows, without what is around it: the square in the head's ellipse, hair included, reduced."""
    left, top, right, bottom = face.box
    width, height = right - left, bottom - top
    edges = (left - 0.17 * width, top - 0.44 * height, right + 0.17 * width, bottom + 0.04 * height)
    x0, y0, x1, y1 = (max(0, round(edge)) for edge in edges)
    region = Image.fromarray(photo[y0:y1, x0:x1]).resize((_TILE, _TILE), Image.Resampling.BOX)
    return np.asarray(region).astype(np.float64).ravel()


def _found(distances: NDArray[np.float64]) -> float:
    """The share of people who are nearest to themselves."""
    return float((distances.argmin(axis=1) == np.arange(len(distances))).mean())


if __name__ == "__main__":
    main()
