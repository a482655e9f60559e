"""Gives prepared faces a female and a male persona each: more faces for the classifier, in which hair tells nothing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from visard_errors import CheckpointError
from visard_export.checkpoints import load_generator
from visard_export.graphs import build_graph
from visard_export.networks.atlas import Direction
from visard_export.networks.persona import PersonaGenerator
from visard_preprocess.files import write_atomically
from visard_training.data.faces import GENDERS, IMAGES_FOLDER, Gender, Photo, read_faces, write_cache
from visard_training.runs.progress import track

_DIRECTIONS: dict[Gender, Direction] = {"female": "to_female", "male": "to_male"}


def make_persona_faces(
    cache: Path, generator: Path, output: Path, *, seed: int = 0, console: Console | None = None
) -> int:
    """Write two faces for each of a folder's, labelled with their persona's gender and split like it.

    Args:
        cache: prepared faces; split `test` is left out.
        generator: a persona generator's checkpoint.
        output: folder to fill. It will hold pictures of people.
        seed: decides the personas.
        console: where the progress bar is drawn.

    Returns:
        How many faces were written.

    Raises:
        DataError: the cache cannot be used.
        CheckpointError: the checkpoint cannot be used, or is no persona generator.
    """
    network = load_generator(generator).network()
    if not isinstance(network, PersonaGenerator):
        raise CheckpointError(f"'{generator}' is no persona generator: make one with `visard train persona-generator`")
    graphs = {gender: build_graph(network, direction=direction) for gender, direction in _DIRECTIONS.items()}
    random = np.random.default_rng(seed)
    (output / IMAGES_FOLDER).mkdir(parents=True, exist_ok=True)
    found: list[tuple[Photo, dict[str, Any]]] = []
    faces = [face for face in read_faces(cache) if face.split != "test"]
    for face in track(faces, "Giving personas", len(faces), console):
        image = torch.from_numpy(np.array(Image.open(face.path).convert("RGB")))[None]
        for gender in GENDERS:
            number = torch.tensor([[int(random.integers(2**31))]], dtype=torch.int32)
            with torch.inference_mode():
                swapped = graphs[gender](image, number)[0].numpy()
            name = f"{face.path.stem}-{gender}.jpg"
            buffer = BytesIO()
            Image.fromarray(swapped).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
            write_atomically(output / IMAGES_FOLDER / name, buffer.getvalue())
            photo = Photo(path=face.path, gender=gender, split=face.split, person=face.person, groups=face.groups)
            found.append(
                (photo, {"name": name, "side_px": face.side_px, "inside": face.inside, "landmarks": face.landmarks})
            )
    write_cache(output, found)
    return len(found)
