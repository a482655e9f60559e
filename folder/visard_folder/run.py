"""One run over a folder, with either engine: what is left to do, who does it, and the outcome.

    walk ─► what the journal does not know as done ─► engine ─► journal ─► manifest, report, annotations

A run can be killed at any moment; the same call resumes it. It waits for servers that are lost; a full disk ends
the run. `visard_folder.photo` decides what becomes of one photo.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from visard_folder.boxes import unused
from visard_folder.drop import DropFolder
from visard_folder.journal import Journal, Record, Stamp, output_errors, printable
from visard_folder.local_engine import LocalEngine
from visard_folder.manifest import write_manifest
from visard_folder.places import check_places, find_files, open_journal, publish, results
from visard_folder.pool import Models, agreed_models
from visard_folder.report import write_report

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator

    from visard_folder.job import FolderJob
    from visard_folder.walk import Found


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Gets the progress of a run. Called from several threads.

    Attributes:
        photo: a photo is done; None for one that an earlier run did.
        total: how many files there are, once they have been counted.
        notice: something that a person should know.
        waiting: everything is done, and the run waits for more photos.
    """

    photo: Callable[[Record | None], None] = lambda record: None
    total: Callable[[int], None] = lambda total: None
    notice: Callable[[str], None] = lambda text: None
    waiting: Callable[[], None] = lambda: None


class Engine(Protocol):
    """Who does the work of a run: `visard_folder.local_engine.LocalEngine` or `visard_folder.ray_engine.RayEngine`."""

    def do(self, run: Run) -> None:
        """Do what is left to do; ends with the first error that is not a photo's.

        Raises:
            MissingExtra: the engine is not installed.
            OutputError: the target cannot be written. The run can go on later.
            ServerError: a server refused, came back with other models, or all were away for too long.
        """


class Run:
    """One run of a job.

    Attributes:
        job: what to do.
        models: what all its servers serve.
        journal: of the target, open.
        watcher: gets the progress.
        drop: where the source is watched.
        done_before: photos of earlier runs that `photos` has met so far.
        changed: whether anything was done that the journal did not say before.
    """

    def __init__(
        self, job: FolderJob, models: Models, journal: Journal, watcher: Watcher, drop: DropFolder | None = None
    ) -> None:
        self.job = job
        self.models = models
        self.journal = journal
        self.watcher = watcher
        self.drop = drop
        self.done_before = 0
        self._unmet = dict(job.boxes or {})
        self.changed = False

    def photos(self) -> Generator[Found, None, None]:
        """Find what is left to do."""
        for found in find_files(self.job.source):
            self._unmet.pop(printable(found.path), None)
            if self.journal.is_done(found.path, found.stamp, self.job.boxes_of(found.path)):
                self.done_before += 1
                self.watcher.photo(None)
            elif self.drop is None or self.drop.ready(found):
                yield found

    def anything(self) -> bool:
        """Whether anything is left to do."""
        with closing(self.photos()) as photos:
            return next(photos, None) is not None

    def count(self, ended: threading.Event) -> None:
        """Count all files, beside the work, unless that has ended."""
        total = 0
        for _ in find_files(self.job.source):
            total += 1
            if ended.is_set():
                return
        self.watcher.total(total)

    def done(self, record: Record, stamp: Stamp | None) -> None:
        """Remember what became of a photo, once its image, if any, stands under its final name.

        Raises:
            OutputError: it cannot be written.
        """
        if self.drop is not None:
            if record.outcome in ("failed", "ignored") and self._has_gone(record.path):
                return
            if record.outcome == "failed":
                self.drop.failed(record.path, stamp)
        if not self.journal.failed_as_before(record):
            self.changed = True
            self.journal.add(record, stamp)
        self.watcher.photo(record)

    def _has_gone(self, path: str) -> bool:
        """Whether a file was taken away before it was worked on, as temporary files are: then it needs no record."""
        return not os.path.lexists(Path(self.job.source) / path) and self.journal.get(path) is None

    def finish(self) -> dict[str, Any]:
        """End the whole run: drop what has gone, write manifest, report and annotations, and sum up.

        Manifest and report stay as they are where they tell all already.

        Returns:
            See `anonymise_folder`.

        Raises:
            OutputError: something cannot be written.
        """
        if self.journal.finish():
            self.changed = True
        with output_errors(self.journal.target):
            reports = self.journal.reports() or self._report()
            annotations = self.job.annotations.carry(self.journal, self.watcher.notice)
        publish(self.job, self.journal, annotations)
        return {
            **self.journal.summary(),
            "changed": self.changed,
            "done_before": self.done_before,
            "boxes_unused": list(self._unmet),
            **{kind: [str(path) for path in paths] for kind, paths in reports.items()},
            "annotations": [str(path) for path in annotations],
        }

    def _report(self) -> dict[str, list[Path]]:
        left_out: list[str] = []
        read, link = results(self.job.target)
        reports = {
            "manifest": write_manifest(self.journal, left_out.append),
            "report": write_report(self.journal, read, link, left_out.append),
        }
        publish(self.job, self.journal, [path for paths in reports.values() for path in paths])
        for words in left_out:
            self.watcher.notice(words)
        if not left_out:  # what is missing is made by the next run, if it can
            self.journal.reported(reports)
        return reports


def anonymise_folder(
    job: FolderJob, engine: Engine | None = None, watcher: Watcher | None = None, *, watch: bool = False
) -> dict[str, Any]:
    """Anonymise every photo of a folder or store; what an earlier run did is not done again.

    Args:
        job: what to do.
        engine: who does it; this machine by default.
        watcher: gets the progress.
        watch: go on until Ctrl-C, with photos as they come into the source, which is a folder; see `DropFolder`.
            Manifest, report and annotations tell of all photos whenever the run waits.

    Returns:
        `Journal.summary`, `changed` (whether anything was done), `done_before` (photos of earlier runs), `boxes_unused`
        (files with boxes that are not there), `manifest`, `report` and `annotations` (paths) and `seconds`.

    Raises:
        MissingExtra: the engine, or what reads this kind of URL, is not installed.
        DataError: a URL or an annotation file cannot be used.
        OutputError: the places cannot be used, or the disk is full. The run can go on later.
        ServerError: a server refused, serves other models than before, or all were away for too long.
        UnreadablePhoto: the source cannot be listed.
    """
    watcher = watcher or Watcher()
    started = time.monotonic()
    check_places(job)
    with closing(find_files(job.source)) as files:
        next(files, None)  # whether it can be listed at all, before anything is made
    job.annotations.check()
    models = asyncio.run(agreed_models(job.connections))
    drop = DropFolder(Path(job.source)) if watch else None
    with open_journal(job, models) as journal:
        while True:
            run = Run(job, models, journal, watcher, drop)
            (engine or LocalEngine()).do(run)
            summary = run.finish()
            if drop is None or not drop.wait(Run(job, models, journal, Watcher(), drop).anything, watcher.waiting):
                break
    if summary["boxes_unused"]:
        watcher.notice(unused(summary["boxes_unused"]))
    return {**summary, "seconds": round(time.monotonic() - started, 1)}
