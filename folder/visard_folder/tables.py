"""Reads CSV tables row by row: of annotations, and of boxes by hand."""

from __future__ import annotations

import csv
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from visard_errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def slashed(path: str, separator: str = os.sep) -> str:
    """A relative path as the manifest writes it: with slashes, also where a program of this system wrote others."""
    return path.replace(separator, "/")


@contextmanager
def open_table(path: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, dict[str, str]]]]]:
    """Open a CSV file in UTF-8 with a header.

    Args:
        path: of the file.

    Yields:
        The columns, and an iterator of the rows: the number of a row's last line, and its cells.

    Raises:
        DataError: the file cannot be read, is no such table, or a row has another number of cells than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            columns = list(rows.fieldnames or [])
            if not columns:
                raise DataError(f"'{path}' is empty: it needs a header and a row per photo")
            yield columns, _whole(path, rows)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"'{path}' is not a CSV file in UTF-8 ({error})") from None


def _whole(path: Path, rows: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for row in rows:
        if None in row or None in row.values():
            raise DataError(f"'{path}', line {rows.line_num} has another number of cells than the header")
        yield rows.line_num, row
