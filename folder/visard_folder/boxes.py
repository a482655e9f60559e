"""Boxes by hand for the photos of a folder, from a CSV file: around faces that the detector misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visard.boxes import MAX_BOXES, Box, parse_box
from visard_errors import DataError
from visard_folder.tables import open_table, slashed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILE, _EDGES = "file", ("left", "top", "right", "bottom")
_MOST = 100_000  # rows: they are all held in memory, and each actor of a cluster gets them

Boxes = dict[str, tuple[Box, ...]]  # path, as the manifest writes it → its boxes


def load_boxes(path: Path) -> Boxes:
    """Read a table with the columns ``file``, ``left``, ``top``, ``right`` and ``bottom``, a row per box.

    Args:
        path: of the table. Its files are relative to the source folder and written as in the manifest, its boxes in
            pixels of the upright photos; see `visard.boxes`. Other columns are passed over.

    Raises:
        DataError: it cannot be read, a row has no file or no box, or there are too many.
    """
    boxes: Boxes = {}
    with open_table(path) as (columns, rows):
        if missing := [name for name in (_FILE, *_EDGES) if name not in columns]:
            raise DataError(
                f"'{path}' has no column {', '.join(missing)} among {', '.join(columns)}: it needs file, left, top, "
                "right and bottom"
            )
        for number, (line, row) in enumerate(rows, 1):
            where = f"'{path}', line {line}"
            if not row[_FILE]:
                raise DataError(f"{where}: file is empty")
            try:
                box = parse_box(",".join(row[edge] for edge in _EDGES))
            except ValueError as error:
                raise DataError(f"{where}: {error}") from None
            file = slashed(row[_FILE])
            known = boxes.get(file, ())
            if len(known) == MAX_BOXES:
                raise DataError(f"{where}: '{file}' has more than {MAX_BOXES} boxes")
            if number > _MOST:
                raise DataError(f"{where}: there are more than {_MOST} boxes: divide the photos among several runs")
            boxes[file] = (*known, box)
    return boxes


def unused(files: Sequence[str]) -> str:
    """Say which files with boxes are not there; at least one is not."""
    names = ", ".join(f"'{name}'" for name in files[:5])
    more = f" and {len(files) - 5} others" if len(files) > 5 else ""
    return f"the boxes for {names}{more} were NOT used: there is no such file; write paths as the manifest does"
