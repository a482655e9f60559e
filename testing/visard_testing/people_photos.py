"""Two photos each of twelve people who do not exist, and results whose truth is known: the originals, painted faces."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from visard_evaluation.painting import face_outline
from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo

PEOPLE = Path(__file__).parent / "people"


def write_people(folder: Path) -> Path:
    """Each portrait as it is, and brighter, a little turned and smaller, with a manifest that says who is who."""
    folder.mkdir()
    with (PEOPLE / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["file,gender,person,light"]
    for row in rows:
        first = Image.open(PEOPLE / row["file"]).resize((384, 384))  # smaller is faster
        second = ImageEnhance.Brightness(first).enhance(1.2).rotate(4, Image.Resampling.BICUBIC).resize((340, 340))
        person = Path(row["file"]).stem
        for light, picture in (("normal", first), ("bright", second)):
            picture.save(folder / f"{person}_{light}.png")
            lines.append(f"{person}_{light}.png,{row['gender']},{person},{light}")
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_painted(photos: Path, folder: Path) -> Path:
    """The same photos with every face painted over in the photo itself: an anonymisation that leaves context alone."""
    folder.mkdir()
    for path in photos.glob("*.png"):
        photo = read_photo(path)
        quad = finder().find(photo)[0].quad
        outline = quad.to_photo(face_outline(finder().landmarks(crop(photo, quad))))
        mask = Image.new("1", (photo.shape[1], photo.shape[0]))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in outline], fill=1)
        painted = photo.copy()
        painted[np.asarray(mask)] = np.median(photo[np.asarray(mask)], axis=0)
        Image.fromarray(painted).save(folder / path.name)
    return folder
