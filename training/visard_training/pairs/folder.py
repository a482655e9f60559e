"""The folder of training pairs: the same face once female, once male; written by the pair maker, read by the swapper.

It grows row by row and survives being killed at any moment: a pair counts from the moment its row is complete, and
a writer that opens the folder again continues after the last one. How the pairs were generated makes no difference.

    pairs.csv             one row per pair
    dropped.csv           one row per source that became no pair, with the filter that it failed
    images/               000123_female.jpg, 000123_male.jpg
    report.json           the settings of the run, and how many sources survive each filter
    contact_sheet_1.jpg   pairs to look at, female on the left
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from io import BytesIO, StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import DataError
from visard_preprocess.files import write_atomically
from visard_training.runs.state import check_settings, writing

Split = Literal["train", "holdout"]
Suffix = Literal[".jpg", ".png"]

PAIRS_FILE, DROPPED_FILE, REPORT_FILE, IMAGES_FOLDER = "pairs.csv", "dropped.csv", "report.json", "images"

_SAVE_OPTIONS: dict[Suffix, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".png": {"format": "PNG", "compress_level": 4},
}
_SHEETS, _SHEET_COLUMNS, _SHEET_ROWS, _THUMBNAIL = 4, 6, 8, 160


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row of `pairs.csv`.

    Attributes:
        pair: its number, from 0.
        female: image file; relative in the CSV, under the folder's path when read.
        male: image file, likewise.
        source: what it was made from, such as a seed.
        female_multiple: how much of the transition the female side was moved by; negative towards female, 0 untouched.
        male_multiple: the same for the male side; larger than `female_multiple`.
        p_female: the classifier's probability that the female side is female.
        p_male: the classifier's probability that the male side is male.
        split: `holdout` pairs are never trained on.
    """

    pair: int
    female: Path
    male: Path
    source: str
    female_multiple: float
    male_multiple: float
    p_female: float
    p_male: float
    split: Split

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split must be one of {get_args(Split)}, not {self.split!r}")
        if not (0 <= self.p_female <= 1 and 0 <= self.p_male <= 1):
            raise ValueError(f"probabilities lie in 0..1, not {self.p_female} and {self.p_male}")


def read_pairs(folder: Path) -> tuple[Pair, ...]:
    """Read a folder of pairs.

    Raises:
        DataError: it is no such folder, it holds no pair, or a row or an image is broken or missing.
    """
    path = folder / PAIRS_FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            pairs = tuple(_parse(row, folder) for row in csv.DictReader(file))
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}): make pairs with `visard train pairs`") from error
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"'{path}' is damaged ({error}): make the pairs again") from error
    if not pairs:
        raise DataError(f"'{path}' holds no pair: see {REPORT_FILE} for the filter that dropped them")
    for pair in pairs:
        for image in (pair.female, pair.male):
            if not image.is_file():
                raise DataError(f"pair {pair.pair} of '{path}' lacks '{image}': make the pairs again")
    return pairs


def choose_pair(probabilities: NDArray[np.floating[Any]], min_certainty: float) -> tuple[int, int] | None:
    """Choose which two of several versions of one face become a pair (step 7).

    Of the versions that belong to their class with enough certainty, the two nearest to each other on the transition:
    what else moves with it (age, pose, background) moves least. Among equally near ones the most certain.

    Args:
        probabilities: (N, 2) of (female, male), in the order of the transition from female to male.
        min_certainty: what both sides must reach, above 0.5.

    Returns:
        The indices of the female and of the male version, None where no two are certain.
    """
    female, male = (np.flatnonzero(probabilities[:, side] >= min_certainty) for side in (0, 1))
    candidates = [(int(f), int(m)) for f in female for m in male if f < m]
    if not candidates:
        return None
    return min(candidates, key=lambda c: (c[1] - c[0], -min(probabilities[c[0], 0], probabilities[c[1], 1])))


class PairWriter:
    """Writes a folder of pairs, or continues one that was begun with the same settings.

    Args:
        folder: made if it is missing.
        settings: what decides about the pairs (seed, checkpoints' digests, thresholds); JSON values.
        filters: what a source passes through on its way to a pair, in that order; the names that `drop` accepts.
        suffix: of the images.

    Attributes:
        done: the sources that need not be worked on again.

    Raises:
        OutputError: the folder cannot be written, or was begun with other settings.
        DataError: it is damaged.

    Example:
        with PairWriter(folder, settings={"seed": 0}, filters=("face found", "certain")) as writer:
            for source in sources:
                if source in writer.done:
                    continue
                ...
                writer.drop(source, "certain")
                # or
                writer.add(female, male, source=source, female_multiple=-0.5, male_multiple=0.5, p_female=0.98,
                           p_male=0.97, split="train")
    """

    def __init__(
        self, folder: Path, *, settings: Mapping[str, Any], filters: Sequence[str], suffix: Suffix = ".jpg"
    ) -> None:
        self.folder, self.filters, self._suffix = folder, tuple(filters), suffix
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # as they will be read back
        self._notes: dict[str, Any] = {}
        with writing(folder):
            (folder / IMAGES_FOLDER).mkdir(parents=True, exist_ok=True)
        self._check_report()
        self._pairs = AppendedCsv(folder / PAIRS_FILE, [field.name for field in fields(Pair)])
        self._dropped = AppendedCsv(folder / DROPPED_FILE, ["source", "filter"])
        self._n_pairs = len(self._pairs.rows)
        self._drops = Counter(row["filter"] for row in self._dropped.rows)
        self.done = {row["source"] for row in self._pairs.rows + self._dropped.rows}
        self._write_report()

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_report()
        if self._n_pairs and error is None:
            write_contact_sheets(self.folder)

    def add(
        self,
        female: NDArray[np.uint8],
        male: NDArray[np.uint8],
        *,
        source: str,
        female_multiple: float,
        male_multiple: float,
        p_female: float,
        p_male: float,
        split: Split,
    ) -> Pair:
        """Append a pair of (H, W, 3) uint8 RGB images; see `Pair` for the rest."""
        images = [Path(IMAGES_FOLDER, f"{self._n_pairs:06}_{side}{self._suffix}") for side in ("female", "male")]
        pair = Pair(
            pair=self._n_pairs,
            female=images[0],
            male=images[1],
            source=source,
            female_multiple=female_multiple,
            male_multiple=male_multiple,
            p_female=round(p_female, 6),
            p_male=round(p_male, 6),
            split=split,
        )
        for path, image in zip(images, (female, male), strict=True):
            _write_image(self.folder / path, image, _SAVE_OPTIONS[self._suffix])
        self._pairs.append(astuple(pair))  # last: from here on the pair counts
        self._n_pairs += 1
        self.done.add(source)
        return pair

    def drop(self, source: str, filter: str) -> None:
        """Note that a source became no pair because it failed a filter."""
        if filter not in self.filters:
            raise ValueError(f"filter must be one of {', '.join(self.filters)}, not {filter!r}")
        self._dropped.append((source, filter))
        self._drops[filter] += 1
        self.done.add(source)

    def note(self, name: str, value: Any) -> None:
        """Put something more, of JSON values, into the report."""
        self._notes[name] = value
        self._write_report()

    @property
    def survival(self) -> dict[str, int]:
        """How many sources there were, and how many are left after each filter."""
        left = self._n_pairs + self._drops.total()
        table = {"sources": left}
        for filter in self.filters:
            left -= self._drops[filter]
            table[filter] = left
        return table

    def _check_report(self) -> None:
        path = self.folder / REPORT_FILE
        if not path.exists():
            return
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            begun, self._notes = report["settings"], report["notes"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{path}' is damaged: choose another folder, or delete this one") from error
        check_settings(self.folder, begun, self._settings)

    def _write_report(self) -> None:
        report = {"settings": self._settings, "survival": self.survival, "notes": self._notes}
        _replace(self.folder / REPORT_FILE, (json.dumps(report, indent=2) + "\n").encode())


class AppendedCsv:
    """A CSV file that only grows, one complete row at a time; a last row that was cut off by a kill is removed.

    Attributes:
        rows: what the file held when it was opened.

    Raises:
        OutputError: the file cannot be read or written.
        DataError: it has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        with writing(path):
            data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        reader = csv.DictReader(StringIO(whole.decode("utf-8", "replace")))
        self.rows: list[dict[str, str]] = list(reader)
        if whole and list(reader.fieldnames or ()) != list(columns):
            raise DataError(f"'{path}' has other columns than {', '.join(columns)}: choose another folder")
        if not whole:
            self._write("wb", columns)
        elif len(whole) < len(data):
            os.truncate(path, len(whole))

    def append(self, row: Sequence[Any]) -> None:
        """Write one row and see it onto the disk."""
        self._write("ab", row)

    def _write(self, mode: Literal["ab", "wb"], row: Sequence[Any]) -> None:
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        with writing(self._path), self._path.open(mode) as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())


def write_contact_sheets(folder: Path) -> list[Path]:
    """Lay pairs side by side, female on the left; where there are too many, evenly spread ones."""
    pairs = read_pairs(folder)
    per_sheet = _SHEET_COLUMNS * _SHEET_ROWS
    shown = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(len(pairs), _SHEETS * per_sheet)).astype(int)]
    sheets: list[Path] = []
    for start in range(0, len(shown), per_sheet):
        cells = shown[start : start + per_sheet]
        rows = -(-len(cells) // _SHEET_COLUMNS)
        sheet = Image.new("RGB", (_SHEET_COLUMNS * 2 * _THUMBNAIL, rows * _THUMBNAIL), "white")
        for i, pair in enumerate(cells):
            row, column = divmod(i, _SHEET_COLUMNS)
            for side, path in enumerate((pair.female, pair.male)):
                with Image.open(path) as image:
                    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
                sheet.paste(thumbnail, ((2 * column + side) * _THUMBNAIL, row * _THUMBNAIL))
        sheets.append(folder / f"contact_sheet_{len(sheets) + 1}.jpg")
        _write_image(sheets[-1], np.asarray(sheet), _SAVE_OPTIONS[".jpg"])
    return sheets


def _parse(row: dict[str, str], folder: Path) -> Pair:
    images = {side: Path(row[side]) for side in ("female", "male")}
    for image in images.values():
        if image.is_absolute() or ".." in image.parts:
            raise ValueError(f"'{image}' leaves the folder")
    return Pair(
        pair=int(row["pair"]),
        female=folder / images["female"],
        male=folder / images["male"],
        source=row["source"],
        female_multiple=float(row["female_multiple"]),
        male_multiple=float(row["male_multiple"]),
        p_female=float(row["p_female"]),
        p_male=float(row["p_male"]),
        split=row["split"],  # type: ignore[arg-type]  # checked by Pair
    )


def _write_image(path: Path, image: NDArray[np.uint8], options: Mapping[str, Any]) -> None:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, **options)
    _replace(path, buffer.getvalue())


def _replace(path: Path, data: bytes) -> None:
    with writing(path):
        write_atomically(path, data)
