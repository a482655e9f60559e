"""Brings a photo's result to the disk, so that a run can be killed at any moment.

An image gets its name only when it is whole and on the disk.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from visard_errors import UnreadablePhoto
from visard_folder.journal import output_errors
from visard_preprocess.files import folds_case, name_problem, replace_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from visard_folder.journal import Record
    from visard_folder.photo import Product
    from visard_folder.walk import Found

# What is wrong with one name, not with the disk: the run goes on without that photo.
_NAME_ERRORS = (
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),  # a file and a folder of one name: a store may have both
)


class Ledger(Protocol):
    """What a `Writer` needs of a `Journal`, which is not on every node of a cluster."""

    @property
    def target(self) -> Path:
        """The output folder."""

    @property
    def drafts(self) -> Path:
        """Where files are written before they get their names; on the disk of the output."""

    def claim(self, path: str) -> str:
        """See `Journal.claim`."""


class Writer:
    """Writes into one output folder. Several threads may use it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        with output_errors(ledger.target):
            self._folds_case = folds_case(ledger.drafts)

    def store(self, product: Product, found: Found) -> Record:
        """Write a photo's image, if there is one; gives its record.

        Where there is none, an image that an earlier run made of the photo is removed.

        Raises:
            OutputError: the disk is full, or cannot be written for another reason than this photo's name.
        """
        started = time.perf_counter()
        with output_errors(self._ledger.target):
            record = self._place(product, self._ledger.target / found.path)
        record.seconds["write"] = round(time.perf_counter() - started, 4)
        return record

    def _place(self, product: Product, target: Path) -> Record:
        if problem := name_problem(product.record.path):  # nothing of that name may be touched
            said = f"the output folder cannot hold a file of this name ({problem})"
            return product.record if product.encoded is None else failed(product.record, said)
        try:
            if product.encoded is not None:
                return self._write(product.encoded, product.record, target)
            with suppress(NotADirectoryError, IsADirectoryError):  # then there is no image of that name
                target.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            return failed(product.record, f"the output folder cannot hold a file of this name ({error.strerror})")
        return product.record

    def _write(self, encoded: bytes, record: Record, target: Path) -> Record:
        if self._folds_case and (owner := self._ledger.claim(record.path)) != record.path:
            return failed(record, f"the output folder does not tell its name from '{owner}', which came first")
        target.parent.mkdir(parents=True, exist_ok=True)

        def write(draft: Path) -> None:
            draft.write_bytes(encoded)
            if draft.read_bytes() != encoded:  # what was proven clean is what stands there
                raise OSError(errno.EIO, "what was written reads back differently")

        replace_atomically(target, write, drafts=self._ledger.drafts)
        return replace(record, size_bytes=len(encoded))


def failed(record: Record, message: str) -> Record:
    """The record of a photo that was done and could not be written."""
    faces = tuple(replace(face, outcome="withheld") for face in record.faces)
    return replace(record, outcome="failed", faces=faces, error=UnreadablePhoto.__name__, message=message)
