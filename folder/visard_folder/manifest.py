"""Writes the manifest of a run, a row per photo, as CSV and as Parquet: from the journal, in the order of the paths.

Made anew at the end of every run, however often it was interrupted. Nothing but the timings differs from the manifest
of an undisturbed run.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from visard_errors import MissingExtra
from visard_folder.journal import Journal, Record, printable
from visard_preprocess.files import replace_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STAGES = ("read", "decode", "find", "align", "people", "swap", "score", "blend", "encode", "write")
COLUMNS = (
    *("path", "outcome", "hash", "width", "height", "faces_found", "faces", "size_bytes", "error", "message"),
    "seconds",
)
_GROUP = 10_000  # rows of Parquet held in memory at once


def write_manifest(journal: Journal, notice: Callable[[str], None]) -> list[Path]:
    """Write `manifest.csv` and, where pyarrow is installed, `manifest.parquet` beside the journal.

    `faces` and `seconds` are JSON in CSV and nested columns in Parquet. Paths are `printable`.

    Args:
        journal: of the run.
        notice: gets a message if Parquet is left out.

    Returns:
        What was written.
    """
    written = [journal.folder / "manifest.csv"]
    replace_atomically(written[0], partial(_write_csv, journal), drafts=journal.drafts)
    try:
        parquet = journal.folder / "manifest.parquet"
        replace_atomically(parquet, partial(_write_parquet, journal), drafts=journal.drafts)
        written.append(parquet)
    except MissingExtra as error:
        notice(str(error))
    return written


def _row(record: Record) -> dict[str, Any]:
    row = asdict(record)
    row["path"] = printable(record.path)
    return {column: row[column] for column in COLUMNS}


def _write_csv(journal: Journal, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        for record in journal.records():
            row = _row(record)
            rows.writerow(row | {name: json.dumps(row[name]) for name in ("faces", "seconds")})


def _write_parquet(journal: Journal, path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("folder", "manifest.parquet") from error

    face = [
        ("box", pa.list_(pa.int32(), 4)),
        *((name, pa.string()) for name in ("outcome", "reason", "target", "gender")),
        ("gender_confidence", pa.float64()),
        ("swapped_gender", pa.string()),
        *((name, pa.float64()) for name in ("swapped_confidence", "similarity_percent", "identity_distance")),
    ]
    types = {
        **dict.fromkeys(("path", "outcome", "hash", "error", "message"), pa.string()),
        **dict.fromkeys(("width", "height", "faces_found"), pa.int32()),
        "faces": pa.list_(pa.struct(face)),
        "size_bytes": pa.int64(),
        "seconds": pa.struct([(stage, pa.float64()) for stage in STAGES]),
    }
    schema = pa.schema([(column, types[column]) for column in COLUMNS])
    records = journal.records()
    with pq.ParquetWriter(path, schema) as writer:  # type: ignore[no-untyped-call]
        while rows := [_row(record) for record in islice(records, _GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema))
