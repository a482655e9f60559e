"""Whole folders: anonymise a data set, keep its tree and its annotations, and record what became of every photo.

The files in the order of the data: `walk` (find and read), `photo` (one photo, by `policy` and `people`; `leaks` proves
the result), `run` (many at once), `write` and `journal` (what became of each), `manifest` and `annotations` (the end).
`pool` asks the servers. `ray_engine` and `stores` do the same on a cluster.
"""

from visard_folder.annotations import Annotations
from visard_folder.journal import FaceRecord, Journal, Record
from visard_folder.people import People, load_people
from visard_folder.photo import Settings
from visard_folder.run import Watcher, anonymise_folder

__all__ = [
    "Annotations",
    "FaceRecord",
    "Journal",
    "People",
    "Record",
    "Settings",
    "Watcher",
    "anonymise_folder",
    "load_people",
]
