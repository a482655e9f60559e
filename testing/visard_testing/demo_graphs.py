"""Takes the demo models' graphs out of an export: `python -m visard_testing.demo_graphs`, after a change of either.

What it writes is shipped beside the weights, see `visard_export.prebuilt`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from visard_export.demo import demo_checkpoints
from visard_export.export import export_repository
from visard_export.options import ExportOptions
from visard_export.prebuilt import GRAPHS_FILE, WEIGHTS_FOLDER, take_apart
from visard_export.repository import read_provenance
from visard_server.embedded import SAMPLE_PHOTO, aligned_faces


def export_demo_models(target: Path) -> None:
    """Export the demo weights as `visard export` does it."""
    paths = demo_checkpoints()
    export_repository(
        target,
        classifier=paths.classifier,
        to_male=paths.to_male,
        to_female=paths.to_female,
        faces=aligned_faces(SAMPLE_PHOTO),
        options=ExportOptions(),
        report=print,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        export_demo_models(repository)
        versions = {model: repository / model / "1" for model in read_provenance(repository)}
        take_apart(versions, WEIGHTS_FOLDER / GRAPHS_FILE)


if __name__ == "__main__":
    main()
