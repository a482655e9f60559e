"""Writes what a person should look at before publishing: a list, and a page with small pictures of the results.

    journal ─► to_check.csv: every face that is covered or visible, every photo that is not written, and why
            └► report.html: the photos by what became of them, what matters most first

Pictures are of results alone, read back from where they stand. Of a photo that was not written there is a name and a
reason. Both files stand beside the manifest: they name files, so they are no more to be published than that is.
"""

from __future__ import annotations

import base64
import csv
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from io import BytesIO
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

from PIL import Image

from visard.policy import REASONS
from visard_errors import MissingExtra, PhotoError
from visard_folder.journal import printable
from visard_preprocess.files import one_line, replace_atomically
from visard_preprocess.machine import cores
from visard_preprocess.photo import Format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from visard_folder.journal import FaceRecord, Journal, Record

LIST_COLUMNS = ("file", "outcome", "reason", "left", "top", "right", "bottom")
_MOST = 500  # photos of a group on the page, so that a browser can show it: about 6 MB for each group
_EDGE_PX = 400  # of a small picture
_QUALITY, _METHOD = 70, 2  # of WebP; the default method takes twice as long for files 5 % smaller


@dataclass(frozen=True, kw_only=True)
class Group:
    """Photos of which the same became.

    Attributes:
        heading: on the page.
        meaning: what to look for.
    """

    heading: str
    meaning: str


# By the name of the group, what should be looked at first.
_GROUPS = {
    "visible": Group(
        heading="Faces still visible",
        meaning="These faces could not be swapped well enough and were left as they are, as --unswapped show wants it.",
    ),
    "kept": Group(
        heading="Faces visible on purpose",
        meaning="These faces were left by choice. Check that they are the people whom you meant.",
    ),
    "cleaned": Group(
        heading="No face found",
        meaning="Written without metadata and otherwise as they were. Check that no face was missed.",
    ),
    "covered": Group(
        heading="Faces covered",
        meaning="These faces could not be swapped well enough and were covered. Check that you like the result.",
    ),
    "withheld": Group(heading="Withheld", meaning="Not in the results, and not shown here."),
    "failed": Group(
        heading="Failed",
        meaning="Could not be read or written, so they are not in the results. The next run tries them again.",
    ),
    "swapped": Group(
        heading="All faces swapped", meaning="Check that no face was missed: look for one without a frame."
    ),
}


def write_report(
    journal: Journal, read: Callable[[str], bytes], link: str | None, notice: Callable[[str], None]
) -> list[Path]:
    """Write `to_check.csv` and, where jinja2 is installed, `report.html` beside the journal.

    Args:
        journal: of a finished run.
        read: gives the bytes of the result at a relative path; raises `PhotoError` where it cannot be read.
        link: the way from the page to the results, ending with a slash; None where no link leads there.
        notice: gets a message if the page is left out.

    Returns:
        What was written.
    """
    listed = journal.folder / "to_check.csv"
    counts = replace_atomically(listed, partial(_write_list, journal), drafts=journal.drafts)
    page = journal.folder / "report.html"
    try:
        replace_atomically(page, partial(_write_page, journal, counts, read, link), drafts=journal.drafts)
    except MissingExtra as error:
        notice(str(error))
        return [listed]
    return [listed, page]


def _write_list(journal: Journal, path: Path) -> Counter[str]:
    """Write the list; gives how many photos each group has."""
    counts: Counter[str] = Counter()
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(LIST_COLUMNS)
        for record in journal.records():
            counts[_group(record)] += 1
            name = printable(record.path)
            if record.outcome in ("withheld", "failed"):
                rows.writerow((name, record.outcome, record.message, "", "", "", ""))
            rows.writerows(
                (name, face.outcome, _reason(face), *face.box)
                for face in record.faces
                if face.outcome in ("covered", "visible")
            )
    return counts


def _group(record: Record) -> str:
    if not record.written or record.outcome == "visible":
        return record.outcome
    outcomes = {face.outcome for face in record.faces}
    return next((name for word, name in _BY_FACE.items() if word in outcomes), "cleaned")


_BY_FACE = {"visible": "kept", "covered": "covered", "swapped": "swapped"}


def _write_page(
    journal: Journal, counts: Mapping[str, int], read: Callable[[str], bytes], link: str | None, path: Path
) -> None:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("folder", "report.html") from error

    template = resources.files("visard_folder").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    chosen = _choose(journal, counts)
    with ThreadPoolExecutor(cores(), thread_name_prefix="thumbnail") as pool:
        groups = [
            {
                "name": name,
                "group": group,
                "count": counts[name],
                "shown": len(chosen[name]),
                "photos": pool.map(partial(_photo, read, link), chosen[name]),
            }
            for name, group in _GROUPS.items()
            if counts.get(name)
        ]
        summary = journal.summary()
        with path.open("wb") as file:
            environment.from_string(template).stream(groups=groups, linked=link is not None, **summary).dump(
                file, encoding="utf-8"
            )


def _choose(journal: Journal, counts: Mapping[str, int]) -> dict[str, list[Record]]:
    """Take up to `_MOST` photos of each group, spread evenly over the names."""
    chosen: dict[str, list[Record]] = {name: [] for name in _GROUPS}
    seen: Counter[str] = Counter()
    for record in journal.records():
        name = _group(record)
        if name in chosen:
            most = min(_MOST, counts[name])
            if seen[name] * most // counts[name] == len(chosen[name]):
                chosen[name].append(record)
            seen[name] += 1
    return chosen


def _photo(read: Callable[[str], bytes], link: str | None, record: Record) -> dict[str, Any]:
    """What the page shows of one photo."""
    return {
        "name": one_line(printable(record.path)),
        "record": record,
        "link": None if link is None else link + quote(os.fsencode(record.path)),
        "thumbnail": _thumbnail(read, record) if record.written else None,
        "faces": [(face, _reason(face)) for face in record.faces],
    }


def _reason(face: FaceRecord) -> str:
    return "" if face.reason is None else REASONS[face.reason]


def _thumbnail(read: Callable[[str], bytes], record: Record) -> str | None:
    """A data address of the result, small; None where it is not there any more, or another file is in its place."""
    try:
        data = read(record.path)
    except PhotoError:
        return None
    if len(data) != record.size_bytes:
        return None
    buffer = BytesIO()
    try:
        with Image.open(BytesIO(data), formats=get_args(Format)) as image:
            image.thumbnail((_EDGE_PX, _EDGE_PX))  # decodes a JPEG in a smaller size at once
            image.convert("RGB").save(buffer, "WEBP", quality=_QUALITY, method=_METHOD)
    except Exception:  # whatever a decoder raises: it is not the file that was written
        return None
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
