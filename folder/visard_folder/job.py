"""What a run over a folder has to do: one value for all engines."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from visard_folder.annotations import Annotations
from visard_folder.journal import printable
from visard_folder.photo import Settings, steps

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from visard.boxes import Box
    from visard.connection import Connection
    from visard.local import Local
    from visard_folder.boxes import Boxes
    from visard_folder.people import People
    from visard_folder.photo import Steps
    from visard_folder.pool import Models


@dataclass(frozen=True, kw_only=True)
class FolderJob:
    """Anonymise every photo of a folder or store into another one.

    Attributes:
        source: the photos: a folder, or an fsspec URL such as ``s3://bucket/photos``; stays as it is. Every node of a
            cluster sees a folder under this path.
        target: takes the results under the same relative paths; likewise a folder or a URL, of object stores alone,
            whose uploads are atomic. A folder gets `.visard` too, with the journal and the manifest.
        connections: the servers, one or more, with the same models; or a `visard.Local`, whose models run in the
            processes that do the work.
        settings: what to do with every photo.
        people: who stays visible, where not everybody is hidden.
        key: for the HMAC of each source file; no hashes without it.
        persona_key: see `visard.Options`. With the same key, a resumed run, or `force`, gives the same pictures.
            It is stored nowhere.
        boxes: around faces that the detector misses, see `visard_folder.boxes.load_boxes`. Photos whose boxes changed
            are done again; without any table (None), what earlier runs made with theirs stays.
        annotations: to carry along when all photos are done.
        force: do everything again, with other settings if they are others.
        patience_s: how long to wait while all servers are away; for ever where it is None.
        journal_folder: on this machine; takes journal, manifest and report where the target is a URL.
    """

    source: str | os.PathLike[str]
    target: str | os.PathLike[str]
    connections: tuple[Connection | Local, ...]
    settings: Settings = field(default_factory=Settings)
    people: People | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    persona_key: str | bytes | None = field(default=None, repr=False)
    boxes: Boxes | None = None
    annotations: Annotations = field(default_factory=Annotations)
    force: bool = False
    patience_s: float | None = None
    journal_folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a job without a server."""
        if not self.connections:
            raise ValueError("a job needs at least one server")

    def steps(self, read: Callable[[], bytes], path: str) -> Steps:
        """Begin one of its photos; see `visard_folder.photo.steps`."""
        return steps(
            read,
            path,
            self.settings,
            people=self.people,
            boxes=self.boxes_of(path) or (),
            key=self.key,
            persona_key=self.persona_key,
        )

    def boxes_of(self, path: str) -> tuple[Box, ...] | None:
        """Those of one photo; None where no photo has any."""
        return None if self.boxes is None else self.boxes.get(printable(path), ())

    def results_depend_on(self, models: Models) -> dict[str, Any]:
        """What the journal keeps, so that one folder holds one kind of results.

        Of people and key it shows no more than that they are the same. Who becomes whom is left out: that is a draw,
        and its key is stored nowhere. So are boxes, which the record of each photo has.
        """
        people, key = self.people, self.key
        return {
            **asdict(self.settings),
            "people": None if people is None else f"{people.mode} {len(people.descriptors)}",
            "hash_key": None if key is None else hmac.new(key, b"key check", hashlib.sha256).hexdigest()[:8],
            "models": models,
        }
