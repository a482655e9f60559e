"""What became of each photo of a folder, kept so that a run can stop at any moment and be resumed.

A record is written only after its image stands under its final name, so a journal never promises a file that is not
there; the other way round, an image without its record is simply made again, with the same bytes. SQLite with a
write-ahead log: a killed process loses nothing that was committed. There are no pixels, no face descriptors and no
absolute paths in it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from filelock import FileLock, Timeout

from visard.policy import REASONS, FaceOutcome, Reason
from visard_errors import OutputError
from visard_preprocess.files import folded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from visard.boxes import Box
    from visard.result import Gender

FOLDER = ".visard"  # in the output; nothing in it is meant to be published with the photos

Stamp = tuple[int, int]  # size in bytes and time of the last change in nanoseconds

# Nothing is flushed to the disk at each commit: a lost end of the journal costs time, not truth. Paths are bytes,
# because file systems hold any; sorted by them, a million records stream out in order.
_SCHEMA = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS claim (folded BLOB PRIMARY KEY, path BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS photo (path BLOB PRIMARY KEY, outcome TEXT NOT NULL, size_bytes INTEGER, "
    "source_bytes INTEGER, source_mtime_ns INTEGER, current INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID",
)
_ADVICE = "make room or choose another folder, then run the same command again; what is done stays done"
_BRIEF = 60

# What became of a photo. The first three are written to the output, the others are not:
#   anonymised  every face that was found is swapped, covered, or visible by choice
#   visible     at least one face that could not be swapped well enough is visible, as the settings want it
#   cleaned     re-encoded without metadata; no face in it had to be hidden
#   withheld    a face could not be swapped well enough, or none was found where one is expected
#   failed      the file could not be read, decoded or written; tried again by the next run
#   ignored     not a photo, neither by its content nor by its name
Outcome = Literal["anonymised", "visible", "cleaned", "withheld", "failed", "ignored"]
WRITTEN: tuple[Outcome, ...] = ("anonymised", "visible", "cleaned")


@dataclass(frozen=True, kw_only=True)
class FaceRecord:
    """What became of one face.

    Attributes:
        box: (left, top, right, bottom) in photo pixels, as it was detected or drawn, rounded to whole pixels.
        outcome: what the written photo shows in its place; `withheld` where none is written.
        reason: why it was not swapped well enough; None where it was, or was not tried.
        target: the apparent gender that the generator was asked for; None where the face was not sent.
        gender: apparent gender before; None where it was not asked for.
        gender_confidence: 0.5..1.
        swapped_gender: apparent gender of the generated face.
        swapped_confidence: 0.5..1.
        similarity_percent: published formula, see `visard.scoring.similarity`.
        identity_distance: distance of the face descriptors before and after; None where it was not asked for.
    """

    box: tuple[int, int, int, int]
    outcome: FaceOutcome | Literal["withheld"]
    reason: Reason | None = None
    target: Gender | None = None
    gender: Gender | None = None
    gender_confidence: float | None = None
    swapped_gender: Gender | None = None
    swapped_confidence: float | None = None
    similarity_percent: float | None = None
    identity_distance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one photo.

    Attributes:
        path: relative to the source folder, with slashes. Bytes that are not UTF-8 are surrogates, as in `os.fsdecode`.
        outcome: see `Outcome`.
        hash: HMAC-SHA256 of the source file with the user's key, in hex; None without a key.
        width: of the upright photo in pixels; None where it could not be decoded.
        height: likewise.
        faces_found: how many faces the detector saw, or boxes showed.
        faces: what became of each: the largest first, those drawn by hand last.
        size_bytes: of the written file; None where none was written.
        seconds: wall time per stage (`read`, `decode`, `find`, `align`, `people`, `swap`, `score`, `blend`, `encode`,
            `write`), those that took place.
        error: name of the error's class where nothing was written; None otherwise.
        message: its words.
        boxes: by hand, as they were given.
    """

    path: str
    outcome: Outcome
    hash: str | None = None
    width: int | None = None
    height: int | None = None
    faces_found: int = 0
    faces: tuple[FaceRecord, ...] = ()
    size_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    message: str | None = None
    boxes: tuple[Box, ...] = ()

    @property
    def written(self) -> bool:
        """Whether there is a file in the output."""
        return self.outcome in WRITTEN


class Journal:
    """The journal of one output folder, in its sub-folder `.visard`. One process at a time may have it open.

    Args:
        target: the output folder; made where it does not exist.
        settings: of the run, ready for JSON. A journal of other settings is refused: one folder of results, one set.
        force: do everything again, with these settings.

    Raises:
        OutputError: the folder cannot be used: it holds something else, another run works on it, or other settings
            made what is in it.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self.target = target
        self.folder = target / FOLDER
        self._lock = threading.Lock()
        with ExitStack() as undo:
            with output_errors(target):
                if target.is_dir() and not self.folder.is_dir() and any(target.iterdir()):
                    raise OutputError(f"'{target}' holds something else: choose an empty or a new folder")
                self.folder.mkdir(parents=True, exist_ok=True)
                undo.enter_context(_locked(self.folder / "lock"))
                shutil.rmtree(self.drafts, ignore_errors=True)  # what a killed run was writing
                self.drafts.mkdir(exist_ok=True)  # Windows keeps a file that somebody has open
                self._db = sqlite3.connect(
                    self.folder / "journal.sqlite", check_same_thread=False, isolation_level=None
                )
                undo.callback(self._db.close)
                for statement in _SCHEMA:
                    self._db.execute(statement)
            self._settle(settings, force=force)
            self._reported = bool(self.reports())
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        with self._lock:
            self._undo.close()

    @property
    def drafts(self) -> Path:
        """Where files are written before they get their names; on the disk of the output."""
        return self.folder / "drafts"

    def add(self, record: Record, stamp: Stamp | None = None) -> None:
        """Remember what became of a photo; its file, if any, stands in its place already.

        Args:
            record: replaces an earlier one of the same path.
            stamp: of the source file, so that a changed photo is done again.

        Raises:
            OutputError: it cannot be written.
        """
        if self._reported:
            self._reported = False
            with self._lock, output_errors(self.target):
                self._db.execute("DELETE FROM run WHERE name = 'reported'")
        body = json.dumps(asdict(record) | {"path": None}, separators=(",", ":"))
        row = (os.fsencode(record.path), record.outcome, record.size_bytes, *(stamp or (None, None)), body)
        with self._lock, output_errors(self.target):
            self._db.execute("REPLACE INTO photo VALUES (?, ?, ?, ?, ?, 1, ?)", row)

    def get(self, path: str) -> Record | None:
        """What became of the photo at this path; None where nothing is known."""
        row = self._one("SELECT body FROM photo WHERE path = ?", os.fsencode(path))
        return None if row is None else _record(path, row[0])

    def is_done(self, path: str, stamp: Stamp | None = None, boxes: tuple[Box, ...] | None = None) -> bool:
        """Whether there is nothing left to do for a photo.

        There is where it is not known, where its source or its boxes have changed since, where its file is gone or has
        another size, and where it had failed: the cause of that may be gone. After `force`, everything counts as not
        known.

        Args:
            path: of the photo.
            stamp: of its source file.
            boxes: by hand; None where it does not matter which they were.
        """
        row = self._one(
            "SELECT outcome, size_bytes, source_bytes, source_mtime_ns FROM photo WHERE path = ? AND current",
            os.fsencode(path),
        )
        if row is None or row[0] == "failed" or (stamp is not None and stamp != row[2:]):
            return False
        if boxes is not None and (record := self.get(path)) is not None and record.boxes != boxes:
            return False
        return row[0] not in WRITTEN or bool(self.size_bytes(path) == row[1])

    def size_bytes(self, path: str) -> int | None:
        """How large a file of the output is; None where there is none."""
        try:
            return (self.target / path).stat().st_size
        except OSError:
            return None

    def remove(self, path: str) -> None:
        """Remove a file of the output, if it is there."""
        (self.target / path).unlink(missing_ok=True)

    def claim(self, path: str) -> str:
        """Reserve a name in an output folder that does not tell upper from lower case.

        Returns:
            The path that has the name: this one, or an earlier one that would be overwritten.
        """
        name = os.fsencode(folded(path))
        with self._lock, output_errors(self.target):
            self._db.execute("INSERT OR IGNORE INTO claim VALUES (?, ?)", (name, os.fsencode(path)))
        owner = self._one("SELECT path FROM claim WHERE folded = ?", name)
        return path if owner is None else os.fsdecode(owner[0])

    def failed_as_before(self, record: Record) -> bool:
        """Whether this is the record of a photo that was tried again and failed again, for the same reason."""
        row = self._one("SELECT body FROM photo WHERE path = ? AND current", os.fsencode(record.path))
        before = None if row is None else _record(record.path, row[0])
        return before is not None and before.outcome == "failed" and before == replace(record, seconds=before.seconds)

    def finish(self) -> int:
        """After a whole run: drop what `force` found no source for any more, its files too.

        Returns:
            How many photos were dropped.
        """
        with self._lock, output_errors(self.target):
            for (path,) in self._db.execute("SELECT path FROM photo WHERE NOT current"):
                self.remove(os.fsdecode(path))
            return self._db.execute("DELETE FROM photo WHERE NOT current").rowcount

    def reports(self) -> dict[str, list[Path]]:
        """The files that tell all that is in it, by their kind; none where one is missing or older than a record."""
        row = self._one("SELECT value FROM run WHERE name = 'reported'")
        found = {} if row is None else json.loads(row[0])
        reports = {kind: [self.folder / name for name in names] for kind, names in found.items()}
        return reports if all(path.is_file() for paths in reports.values() for path in paths) else {}

    def reported(self, reports: Mapping[str, list[Path]]) -> None:
        """Remember that these files, which stand beside it, tell all that is in it."""
        names = {kind: [path.name for path in paths] for kind, paths in reports.items()}
        with self._lock, output_errors(self.target):
            self._db.execute("REPLACE INTO run VALUES ('reported', ?)", (json.dumps(names),))
        self._reported = True

    def records(self) -> Iterator[Record]:
        """Every record, sorted by the bytes of its path; one at a time is held in memory."""
        with closing(self._db.cursor()) as cursor:
            for path, body in cursor.execute("SELECT path, body FROM photo WHERE current ORDER BY path"):
                yield _record(os.fsdecode(path), body)

    def summary(self) -> dict[str, dict[str, int]]:
        """Count what there is.

        Returns:
            `outcomes` of the photos, `faces` by their outcomes and `reasons` why faces were not swapped well enough,
            each with every word that there is, and `errors`, the classes that occurred.
        """
        counts: dict[str, Counter[str]] = {
            "outcomes": Counter(dict.fromkeys(get_args(Outcome), 0)),
            "faces": Counter(dict.fromkeys((*get_args(FaceOutcome), "withheld"), 0)),
            "reasons": Counter(dict.fromkeys(REASONS, 0)),
            "errors": Counter(),
        }
        for record in self.records():
            counts["outcomes"][record.outcome] += 1
            counts["errors"].update([] if record.error is None else [record.error])
            counts["faces"].update(face.outcome for face in record.faces)
            counts["reasons"].update(face.reason for face in record.faces if face.reason is not None)
        return {name: dict(counter) for name, counter in counts.items()}

    def settings(self) -> dict[str, Any]:
        """The settings of the run."""
        row = self._one("SELECT value FROM run WHERE name = 'settings'")
        return {} if row is None else dict(json.loads(row[0]))

    def _settle(self, settings: Mapping[str, Any], *, force: bool) -> None:
        wanted = json.loads(json.dumps(settings))  # as it will come back
        before = self.settings()
        other = [name for name in sorted({*before, *wanted}) if before.get(name) != wanted.get(name)]
        if before and other and not force:
            changes = "; ".join(f"{name}: {_brief(before.get(name))}, now {_brief(wanted.get(name))}" for name in other)
            raise OutputError(
                f"'{self.target}' was made with other settings ({changes}): use the same, choose another folder, or "
                "do everything again with --force"
            )
        with output_errors(self.target), self._db:
            self._db.execute("BEGIN")
            if force:
                self._db.execute("UPDATE photo SET current = 0")
                self._db.execute("DELETE FROM run WHERE name = 'reported'")
            self._db.execute("REPLACE INTO run VALUES ('settings', ?)", (json.dumps(wanted),))

    def _one(self, query: str, *values: bytes) -> Any:
        with self._lock, output_errors(self.target):
            return self._db.execute(query, values).fetchone()


def printable(path: str) -> str:
    r"""Write a path as text that any file format can hold.

    A byte that is not UTF-8 becomes ``\xNN``, and a backslash two, so that no two paths look alike.
    """
    return os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turn what goes wrong with an output folder into `OutputError`, with what to do about it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write to '{target}' ({error.strerror or error}): {_ADVICE}") from None
    except sqlite3.DatabaseError as error:
        raise OutputError(f"cannot use the journal in '{target / FOLDER}' ({error}): {_ADVICE}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends, however it ends."""
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(f"another run is writing to '{path.parent.parent}': wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def _record(path: str, body: str) -> Record:
    values = json.loads(body)
    faces = tuple(FaceRecord(**face | {"box": tuple(face["box"])}) for face in values["faces"])
    boxes = tuple(tuple(box) for box in values.get("boxes", ()))
    return Record(**values | {"path": path, "faces": faces, "boxes": boxes})


def _brief(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _BRIEF else text[:_BRIEF] + "…"
