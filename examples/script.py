"""Anonymises photos into a folder: python script.py anonymised/ photo.jpg another.png."""

import sys
from pathlib import Path

import visard

folder, *photos = map(Path, sys.argv[1:])
folder.mkdir(parents=True, exist_ok=True)
with visard.Client("127.0.0.1:8001") as client:
    for photo, outcome in zip(photos, client.anonymize_many(photos), strict=True):
        if isinstance(outcome, visard.Failed):
            print(f"{photo} was not anonymised: {outcome.error}", file=sys.stderr)
        else:
            outcome.result.save(folder / photo.name)
