"""Anonymises a folder on S3 into another one: python object_storage.py s3://bucket/photos s3://bucket/anonymised.

Credentials come from the environment. Run it again after an interruption, and it goes on from where it was.
"""

import sys
from pathlib import Path

from visard import Connection
from visard_folder import FolderJob, anonymise_folder

source, target = sys.argv[1:]
servers = (Connection(url="127.0.0.1:8001"),)
job = FolderJob(source=source, target=target, connections=servers, journal_folder=Path("journal"))
print(anonymise_folder(job)["outcomes"])
