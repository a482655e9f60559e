"""How much faster Visard aligns a face than the textbook, and how close the two crops are.

One scene of 12 megapixels with one face of a realistic size, as a JPEG in memory. Each run goes from these bytes to the
512² crop:

    textbook   decode, HOG with one upsampling at full size, landmarks at full size, 4096² transform, Lanczos
    visard     read_photo, FaceFinder.find and crop

The two take turns, so that a busy machine slows both. The ceiling is the decoding of the JPEG alone, which nobody can
leave out. Exits with 1 where a target is missed. The last line is JSON.

    python -m visard_benchmarks.align               the sample photo in a 12-megapixel scene
    python -m visard_benchmarks.align holiday.jpg   another face; the photo is enlarged into the same scene
    python -m visard_benchmarks.align --repeats 9   steadier medians
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from visard_preprocess.align import FaceFinder, installed_model
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_server.embedded import SAMPLE_PHOTO
from visard_testing.textbook import textbook_corners, textbook_crop

SCENE = 4000, 3000
QUAD_SIDE = 1350  # photo pixels: a portrait at arm's length with a 12-megapixel phone

MIN_SPEEDUP = 5.0
MAX_CROP_DIFFERENCE = 1.0  # grey levels, mean
MAX_LANDMARK_DIFFERENCE = 0.02  # of the distance between the eyes, mean over the points


def scene_with(photo: NDArray[np.uint8], finder: FaceFinder, width: int = SCENE[0]) -> bytes:
    """Enlarge a photo until its largest face is of a phone photo's size, and set it into a scene 4:3, as a JPEG."""
    face = finder.find(photo)[0]
    size = width, width * SCENE[1] // SCENE[0]
    scale = QUAD_SIDE * width / SCENE[0] / face.quad.side
    image = Image.fromarray(photo)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    background = image.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(60))
    grain = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 1))  # what a sensor adds: no flat areas
    x, y = (np.array(face.quad.centre) * scale).astype(int)
    background.paste(image, (size[0] // 2 - int(x), size[1] // 2 - int(y)))
    pixels = np.clip(np.asarray(background) + grain, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class Textbook:
    """The procedure as it is usually written."""

    def __init__(self) -> None:
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = dlib.shape_predictor(str(installed_model("shape_predictor_68_face_landmarks.dat")))

    def __call__(self, jpeg: bytes) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Landmarks and crop of the largest face."""
        photo = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB"))
        box = max(self._detector(photo, 1), key=lambda box: box.width())
        landmarks = np.array([(point.x, point.y) for point in self._predictor(photo, box).parts()], np.float64)
        return landmarks, textbook_crop(photo, textbook_corners(landmarks))


def decode_alone(jpeg: bytes) -> None:
    Image.open(BytesIO(jpeg)).load()


def timed(work: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path, default=SAMPLE_PHOTO, help="a photo with a face in it")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, at least 3 (default 3)")
    arguments = parser.parse_args()

    finder, textbook = FaceFinder(), Textbook()

    def visard(jpeg: bytes) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        photo = read_photo(jpeg)
        face = finder.find(photo)[0]
        assert face.landmarks is not None
        return face.landmarks, crop(photo, face.quad)

    jpeg = scene_with(read_photo(arguments.photo), finder)
    seconds: dict[str, list[float]] = {"textbook": [], "visard": [], "decode": []}
    for _ in range(max(3, arguments.repeats)):
        elapsed, (textbook_landmarks, textbook_aligned) = timed(textbook, jpeg)
        seconds["textbook"].append(elapsed)
        elapsed, (landmarks, aligned) = timed(visard, jpeg)
        seconds["visard"].append(elapsed)
        seconds["decode"].append(timed(decode_alone, jpeg)[0])

    # Pixels can only be compared where both crops show the same square: the textbook's crop from our landmarks.
    same_square = textbook_crop(read_photo(jpeg), textbook_corners(landmarks))
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    eyes = textbook_landmarks[36:42].mean(axis=0) - textbook_landmarks[42:48].mean(axis=0)
    distances = np.linalg.norm(landmarks - textbook_landmarks, axis=1)
    report = {
        "speedup": medians["textbook"] / medians["visard"],
        "mean_crop_difference": float(np.abs(aligned.astype(int) - same_square).mean()),
        "landmark_difference": float(distances.mean() / np.linalg.norm(eyes)),
        "mean_crop_difference_own_landmarks": float(np.abs(aligned.astype(int) - textbook_aligned).mean()),
        **{f"{name}_s": value for name, value in medians.items()},
        "photo_bytes": len(jpeg),
        "repeats": len(seconds["visard"]),
    }
    print(f"photo          {SCENE[0]}×{SCENE[1]}, {len(jpeg) / 1e6:.1f} MB JPEG, quad of {QUAD_SIDE} px")
    print(f"textbook       {medians['textbook']:7.3f} s")
    print(f"visard         {medians['visard']:7.3f} s   {report['speedup']:.1f} times as fast (target: 5)")
    print(f"decode alone   {medians['decode']:7.3f} s   the ceiling: nobody is faster than that")
    print(f"landmarks      {report['landmark_difference']:7.2%} of the distance between the eyes away (target: 2 %)")
    print(f"crop           {report['mean_crop_difference']:7.3f} grey levels away, from the same landmarks (target: 1)")
    print(f"               {report['mean_crop_difference_own_landmarks']:7.3f} grey levels away, each from its own")
    print(json.dumps({name: round(value, 4) for name, value in report.items()}))
    kept = (
        report["speedup"] >= MIN_SPEEDUP
        and report["mean_crop_difference"] <= MAX_CROP_DIFFERENCE
        and report["landmark_difference"] <= MAX_LANDMARK_DIFFERENCE
    )
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
