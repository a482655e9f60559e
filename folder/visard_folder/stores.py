"""Places of photos that are not folders of this machine: S3 and other stores, by an fsspec URL.

A store is listed folder by folder, in the order of the names; one folder's listing is in memory at a time. An upload to
an object store becomes visible as a whole or not at all, which is why only those may take results. Credentials come
from the store's own places (environment, instance role), never from the URL.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import Retrying, stop_after_attempt, wait_incrementing

from visard_errors import DataError, MissingExtra, OutputError, PhotoError, UnreadablePhoto
from visard_folder.journal import FOLDER, Journal
from visard_folder.walk import Found, read_file
from visard_folder.write import failed

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from visard_folder.journal import Record
    from visard_folder.photo import Product

ATOMIC_STORES = tuple(f"{scheme}://" for scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"))
_ATTEMPTS, _PAUSE_S = 4, 1.0  # of an upload, each pause longer by one; the store's own client has tried before that
_MAX_KEY_BYTES = 1024  # S3's; the others allow no less
_LISTINGS = 16  # folders whose sizes are remembered: about the depth of a tree
_CHANGED = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL, and not a path of this machine."""
    return "://" in os.fspath(place)


class Store:
    """A folder of a store. May be shared by threads.

    Args:
        url: such as ``s3://bucket/folder``.

    Raises:
        MissingExtra: fsspec, or its part for this kind of store, is not installed.
        DataError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise DataError("a URL with a user or a secret in it ends up in logs: use the store's own credentials")
        if parts.query or parts.fragment:
            raise DataError(f"'{url}' has a query: only a folder can be given")
        try:
            from fsspec.core import url_to_fs

            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingExtra("ray", f"'{parts.scheme}://' ({error})") from None
        except Exception as error:  # an unknown kind of store, or one that is connected to at once
            raise DataError(f"'{url}' cannot be opened ({type(error).__name__}): check it") from None
        self._root = root.rstrip("/")
        self.sizes = lru_cache(_LISTINGS)(self._sizes)

    def walk(self) -> Generator[Found, None, None]:
        """Find every file of the store, as `visard_folder.walk.walk` does.

        Raises:
            UnreadablePhoto: it cannot be listed.
        """
        folders = [self._root]
        while folders:
            inner = []
            for info in self._list(folders.pop()):
                key = str(info["name"]).rstrip("/")
                path = key[len(self._root) :].lstrip("/")
                if info["type"] == "directory":
                    if key not in folders and path and path.rpartition("/")[2] != FOLDER:
                        inner.append(key)
                elif path and not str(info["name"]).endswith("/"):  # an empty object that stands for a folder
                    yield Found(path=path, file=key, stamp=_stamp(info), problem=_problem(self._root, key, path))
            folders += reversed(inner)

    def at(self, path: str) -> Found:
        """Name the file at a path, to read it."""
        return Found(path=path, file=f"{self._root}/{path}")

    def read(self, found: Found) -> bytes:
        """Read a file; see `visard_folder.walk.Found.read`."""
        from visard_folder.photo import NotAPhoto

        found.check()
        try:
            with self._fs.open(found.file, "rb") as file:
                return read_file(file, found.path, int(self._fs.size(found.file)))
        except (PhotoError, NotAPhoto):
            raise
        except Exception as error:  # every store has errors of its own, and their words name buckets and requests
            raise UnreadablePhoto(f"the store could not be read ({type(error).__name__})") from None

    def write(self, path: str, data: bytes) -> None:
        """Write a file as a whole and read it back.

        Raises:
            OutputError: the store does not take it.
        """
        key = f"{self._root}/{path}"

        def put() -> None:
            self._fs.pipe_file(key, data)
            if self._fs.cat_file(key) != data:
                self._fs.rm_file(key)
                raise OutputError("what was written reads back differently")

        try:
            Retrying(stop=stop_after_attempt(_ATTEMPTS), wait=wait_incrementing(_PAUSE_S, _PAUSE_S), reraise=True)(put)
        except Exception as error:  # see read
            problem = str(error) if isinstance(error, OutputError) else type(error).__name__
            raise OutputError(
                f"cannot write to '{self.url}' ({problem}): check the credentials and the store, then run the same "
                "command again; what is done stays done"
            ) from None

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._fs.rm_file(f"{self._root}/{path}")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise OutputError(f"cannot remove a file from '{self.url}' ({type(error).__name__})") from None

    def is_empty(self) -> bool:
        """Whether there is no file."""
        try:
            return next(self.walk(), None) is None
        except UnreadablePhoto:
            return True

    def _sizes(self, folder: str) -> dict[str, int]:
        """Path → size in bytes of every file right in a folder (relative, "" for the root)."""
        try:
            infos = self._list(f"{self._root}/{folder}".rstrip("/"))
        except UnreadablePhoto:
            return {}
        start = len(self._root) + 1
        return {str(info["name"])[start:]: int(info["size"]) for info in infos if info["type"] == "file"}

    def _list(self, key: str) -> list[dict[str, Any]]:
        try:
            return sorted(self._fs.ls(key, detail=True, refresh=True), key=lambda info: str(info["name"]))
        except Exception as error:
            place = self.url if key == self._root else "a folder of the store"
            raise UnreadablePhoto(f"cannot list '{place}' ({type(error).__name__}): check it, and the access") from None


class StoreJournal(Journal):
    """The journal of an output that is a store; it lies in a folder of this machine.

    Args:
        store: takes the results.
        folder: takes the journal and the manifest.
        settings: see `Journal`.
        force: see `Journal`.

    Raises:
        OutputError: the store holds something that is not in this journal; and all errors of `Journal`.
    """

    def __init__(self, store: Store, folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
        if not (folder / FOLDER).is_dir() and not force and not store.is_empty():
            raise OutputError(
                f"'{store.url}' holds something, and there is no journal of it in '{folder}': choose an empty place or "
                "the journal that belongs to it, or do everything again with --force"
            )
        super().__init__(folder, {**settings, "store": store.url}, force=force)
        self._store = store

    def size_bytes(self, path: str) -> int | None:
        """See `Journal.size_bytes`."""
        return self._store.sizes(path.rpartition("/")[0]).get(path)

    def remove(self, path: str) -> None:
        """See `Journal.remove`."""
        self._store.remove(path)


def upload(store: Store, product: Product) -> Record:
    """Write a photo's image, or remove what an earlier run made of it; the record has the written size.

    Raises:
        OutputError: the store does not take it.
    """
    started = time.perf_counter()
    record = _place(store, product)
    record.seconds["write"] = round(time.perf_counter() - started, 4)
    return record


def _place(store: Store, product: Product) -> Record:
    record = product.record
    if product.encoded is None:
        store.remove(record.path)
        return record
    if problem := _key_problem(record.path):
        return failed(record, f"the store cannot hold a file of this name ({problem})")
    store.write(record.path, product.encoded)
    return replace(record, size_bytes=len(product.encoded))


def _key_problem(path: str) -> str | None:
    try:
        return "it is too long" if len(path.encode()) > _MAX_KEY_BYTES else None
    except UnicodeEncodeError:
        return "it is not UTF-8"


def _stamp(info: Mapping[str, Any]) -> tuple[int, int]:
    """Size, and a number that changes when the file does."""
    changed = next((str(info[name]) for name in _CHANGED if info.get(name) is not None), "")
    return int(info["size"] or 0), int.from_bytes(hashlib.sha256(changed.encode()).digest()[:7], "big")


def _problem(root: str, key: str, path: str) -> str | None:
    """Why a key cannot be used as a path below the output, if so."""
    if not key.startswith(root) or any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        return "its key is no path below a folder (an empty part, '.' or '..')"
    return None
