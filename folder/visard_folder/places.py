"""Where photos come from and where results go: a folder of this machine or a store, distinguished by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from visard_errors import OutputError
from visard_folder.journal import Journal
from visard_folder.stores import ATOMIC_STORES, Store, StoreJournal, is_url, upload
from visard_folder.walk import Found, check_apart, walk
from visard_folder.write import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from visard_folder.job import FolderJob
    from visard_folder.journal import Record
    from visard_folder.photo import Product
    from visard_folder.pool import Models
    from visard_folder.write import Ledger

Place = str | os.PathLike[str]


def check_places(job: FolderJob) -> None:
    """Refuse places that cannot be used, or do not go together.

    Raises:
        MissingExtra: what reads this kind of URL is not installed.
        DataError: a URL cannot be used.
        OutputError: the target cannot take results.
    """
    source, target = os.fspath(job.source), os.fspath(job.target)
    if is_url(target) and not target.startswith(ATOMIC_STORES):
        raise OutputError(f"'{target}' cannot take results: its uploads could be seen half-written")
    urls = sorted(f"{Store(place).url}/" for place in (source, target) if is_url(place))
    if not urls:
        check_apart(Path(source), Path(target))
    if is_url(target) and job.journal_folder is None:
        raise OutputError(f"'{target}' is a URL: say with --journal which folder of this machine takes the journal")
    if len(urls) > 1 and urls[1].startswith(urls[0]):
        raise OutputError(f"'{target}' and '{source}' lie in each other: choose a place apart from the photos")


def find_files(source: Place) -> Generator[Found, None, None]:
    """Find every file; see `visard_folder.walk.walk`.

    Raises:
        UnreadablePhoto: it cannot be listed.
    """
    # Absolute, because the processes that read the files may stand elsewhere.
    return Store(os.fspath(source)).walk() if is_url(source) else walk(Path(source).absolute())


def open_journal(job: FolderJob, models: Models) -> Journal:
    """Open the journal of a job's target.

    Raises:
        OutputError: see `Journal` and `StoreJournal`.
    """
    settings = job.results_depend_on(models)
    if not is_url(job.target):
        return Journal(Path(job.target), settings, force=job.force)
    assert job.journal_folder is not None  # noqa: S101 - see check_places
    return StoreJournal(Store(os.fspath(job.target)), job.journal_folder, settings, force=job.force)


def reader(source: Place) -> Callable[[Found], bytes]:
    """What reads a file that `find_files` found; see `Found.read`."""
    if is_url(source):
        return Store(os.fspath(source)).read
    return lambda found: found.read()


def writer(target: Place, ledger: Ledger) -> Callable[[Product, Found], Record]:
    """What brings a photo's result to its place and gives the record of it; see `Writer.store` and `upload`.

    Args:
        target: folder or URL.
        ledger: of the output folder; see `Writer`.
    """
    if is_url(target):
        store = Store(os.fspath(target))
        return lambda product, _: upload(store, product)
    return Writer(ledger).store


def results(target: Place) -> tuple[Callable[[str], bytes], str | None]:
    """What reads a result by its relative path, and the way from files beside the journal to it.

    Returns:
        A function that raises `PhotoError` where there is no result; the way ends with a slash and is None for a URL,
        to which no page may link.
    """
    if is_url(target):
        store = Store(os.fspath(target))
        return (lambda path: store.read(store.at(path))), None
    return (lambda path: Found(path=path, file=str(Path(target) / path)).read()), "../"


def publish(job: FolderJob, journal: Journal, files: list[Path]) -> None:
    """Bring what lies beside the journal into the target, where that is a store.

    Raises:
        OutputError: the store does not take it.
    """
    if is_url(job.target):
        store = Store(os.fspath(job.target))
        for file in files:
            store.write(file.relative_to(journal.target).as_posix(), file.read_bytes())
