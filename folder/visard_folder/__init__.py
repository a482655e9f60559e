"""Whole folders: anonymise a data set, keep its tree and its annotations, and record what became of every photo.

The files in the order of the data: `job` (what to do; `boxes` by hand for its photos), `run` (from the start to the
end), `places` (a folder, or one of `stores`), `walk` (find and read; `drop`: as photos come), `photo` (one photo,
through the SDK's steps and `people`; `leaks` proves the result), `write` and `journal` (what became of each),
`manifest`, `report` and `annotations` (the end). Who does it: `local_engine` on this machine, in several `processes`
where it has the cores, or `ray_engine` on a cluster; these divide the photos among `worker`s. All ask the servers
through `pool`.
"""

from visard_folder.annotations import Annotations
from visard_folder.boxes import load_boxes
from visard_folder.job import FolderJob
from visard_folder.journal import FaceRecord, Journal, Record
from visard_folder.local_engine import LocalEngine
from visard_folder.people import People, load_people
from visard_folder.photo import Settings
from visard_folder.run import Watcher, anonymise_folder

__all__ = [
    "Annotations",
    "FaceRecord",
    "FolderJob",
    "Journal",
    "LocalEngine",
    "People",
    "Record",
    "Settings",
    "Watcher",
    "anonymise_folder",
    "load_boxes",
    "load_people",
]
