"""Anonymises a folder on a Ray cluster: python ray_cluster.py /nfs/photos /nfs/anonymised, on one of its nodes.

Every node sees both folders under these paths. Name servers that all nodes reach, as many as there are.
"""

import sys

from visard import Connection
from visard_folder import FolderJob, Watcher, anonymise_folder
from visard_folder.ray_engine import RayEngine

source, target = sys.argv[1:]
servers = tuple(Connection(url=url) for url in ["127.0.0.1:8001"])
job = FolderJob(source=source, target=target, connections=servers)
summary = anonymise_folder(job, RayEngine(address="auto"), Watcher(notice=print))
print(summary["outcomes"])
