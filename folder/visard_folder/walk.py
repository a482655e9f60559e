"""Finds the files of a folder tree, one at a time, and reads them.

Nothing is listed ahead: a folder with a million photos costs no more memory than one with ten. Files come in the order
in which the file system gives them. Whatever cannot be read is found too, with the reason, so that it is reported.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from visard_errors import OutputError, PhotoTooLarge, UnreadablePhoto, UnsupportedFormat
from visard_folder.journal import FOLDER, Stamp
from visard_folder.photo import NotAPhoto

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# What is called a photo is reported when it cannot be read as one; other files are ignored unless their content is one.
_PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"),
    *(".jp2", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
_HEAD = 32  # bytes that tell the format
_NO_FILE = "neither a file nor a folder"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file of the tree, or something that should have been one.

    Attributes:
        path: relative to the root, with slashes; bytes that are not UTF-8 are surrogates.
        file: the same from where this process stands, for reading.
        stamp: size and time of the last change; None where they cannot be read.
        problem: why it cannot be read; None for a file.
    """

    path: str
    file: str
    stamp: Stamp | None = None
    problem: str | None = None

    def check(self) -> None:
        """Refuse what is not worth opening.

        Raises:
            NotAPhoto: a name on the way begins with a dot: macOS puts a ``._photo.jpg`` beside each photo on foreign
                disks, and what else is hidden is a thumbnail, a lock or waste.
            UnreadablePhoto: it cannot be read.
        """
        if any(name.startswith(".") and name.strip(".") for name in self.path.split("/")):  # `..` is no name
            raise NotAPhoto("hidden")
        if self.problem is not None:
            raise UnreadablePhoto(self.problem)

    def read(self) -> bytes:
        """Read the file, see `read_file`.

        Raises:
            NotAPhoto: neither its content nor its name is a photo's, or it is hidden.
            UnreadablePhoto: it cannot be read. No message holds the place of the tree.
        """
        self.check()
        try:
            with open(self.file, "rb", opener=_not_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise UnreadablePhoto(_NO_FILE)
                return read_file(file, self.path, status.st_size)
        except OSError as error:
            raise UnreadablePhoto(f"cannot be read ({error.strerror}): check the file and its permissions") from None


def read_file(file: BinaryIO, path: str, size: int) -> bytes:
    """Read a file that may be a photo, and no more than its first bytes where it is none.

    Args:
        file: open for reading, at its start.
        path: only the suffix counts: what is called a photo should be one.
        size: in bytes.

    Raises:
        NotAPhoto: neither its content nor its name is a photo's.
        UnsupportedFormat: it is called a photo and is not one that can be read here.
        PhotoTooLarge: it has more bytes than allowed.
    """
    from visard_preprocess.photo import ACCEPTED, MAX_BYTES, photo_format

    head = file.read(_HEAD)
    if photo_format(head) is None:
        if path.lower().endswith(_PHOTO_SUFFIXES):
            what = "the content is another" if head else "the file is empty"
            raise UnsupportedFormat(f"{what}: {ACCEPTED}, whatever they are called")
        raise NotAPhoto("not a photo")
    if size > MAX_BYTES:
        raise PhotoTooLarge(f"the photo has {size} bytes, at most {MAX_BYTES} are allowed: reduce it first")
    return head + file.read(MAX_BYTES)


def walk(root: Path) -> Generator[Found, None, None]:
    """Find every file below a folder.

    Links to files are followed. Links to folders are not: they may lead back, out of the tree or to a photo twice;
    they are reported. What an earlier run of Visard keeps about its output (`.visard`) is passed over.

    Args:
        root: an existing folder.

    Raises:
        UnreadablePhoto: the root itself cannot be listed.
    """
    try:
        folders = [("", os.scandir(root))]
    except OSError as error:
        raise UnreadablePhoto(f"cannot list '{root}' ({error.strerror}): give a folder that can be read") from None
    try:
        while folders:
            above, entries = folders[-1]
            try:
                entry = next(entries, None)
            except OSError as error:
                yield _unlisted(above.rstrip("/") or ".", str(root), error)
                entry = None
            if entry is None:
                folders.pop()[1].close()
                continue
            path = above + entry.name
            if not _is_folder(entry):
                yield _file(path, entry)
            elif entry.name != FOLDER:
                try:
                    folders.append((f"{path}/", os.scandir(entry.path)))
                except OSError as error:
                    yield _unlisted(path, entry.path, error)
    finally:
        for _, entries in folders:
            entries.close()


def check_apart(source: Path, target: Path) -> None:
    """Refuse an output within the input, which would be read as input by the next run, and the other way round.

    Raises:
        OutputError: one folder is, or lies in, the other.
    """
    a, b = source.resolve(), target.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise OutputError(f"'{target}' and '{source}' lie in each other: choose an output folder apart from the photos")


def _not_waiting(path: str, flags: int) -> int:
    """Open a file, and do not wait for a pipe that took its place; Windows has none among its files."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _file(path: str, entry: os.DirEntry[str]) -> Found:
    try:
        status = entry.stat()
    except OSError as error:  # a link that leads nowhere or to itself
        return Found(path=path, file=entry.path, problem=f"cannot be read ({error.strerror})")
    problem = None
    if stat.S_ISDIR(status.st_mode):
        problem = "a link to a folder is not followed: give that folder itself, or a copy"
    elif not stat.S_ISREG(status.st_mode):
        problem = _NO_FILE
    return Found(path=path, file=entry.path, stamp=(status.st_size, status.st_mtime_ns), problem=problem)


def _unlisted(path: str, file: str, error: OSError) -> Found:
    return Found(path=path, file=file, problem=f"the folder cannot be listed ({error.strerror}): check its permissions")
