"""The embedded server as it comes: with the demo models, and a sample photo to try them on.

The only file of this package that imports the SDK and the export. It loads the export (and with it torch) only if the
demo models do not exist yet.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from visard.options import Options
from visard.pipeline import prepare
from visard_errors.extras import needs
from visard_export import repository
from visard_server.triton import TritonServer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

SAMPLE_PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"  # NASA, public domain


def embedded_server(
    models: Path | None, report_line: Callable[[str], None] = lambda line: None, **settings: Any
) -> TritonServer:
    """Make a server of a model repository, of the demo models where there is none given; not started yet.

    Args:
        models: the repository.
        report_line: takes a line of progress.
        settings: of `TritonServer`.
    """
    return TritonServer(models or demo_models(report_line), **settings)


def demo_models(report_line: Callable[[str], None] = lambda line: None) -> Path:
    """Find the demo models in the user's cache folder; the first call exports them there, which takes a minute.

    The folder's name holds the digest of all that the export depends on, so that whatever changes is exported anew.
    Only models lie there, never a photograph.
    """
    sources = [
        *Path(repository.__file__).parent.rglob("*.py"),
        *Path(repository.__file__).parent.rglob("*.safetensors"),
        *repository.static_repository().rglob("*.pbtxt"),
        *repository.static_repository().rglob("*.py"),
    ]
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(sources)))
    folder = user_cache_path("visard") / f"demo-models-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        export_demo_models(folder, report_line)
    return folder


def export_demo_models(folder: Path, report_line: Callable[[str], None]) -> None:
    """Export the demo weights."""
    with needs("export", "making the demo models"):
        from visard_export.demo import demo_checkpoints
        from visard_export.export import export_repository
        from visard_export.options import ExportOptions

    paths = demo_checkpoints()
    export_repository(
        folder,
        classifier=paths.classifier,
        to_male=paths.to_male,
        to_female=paths.to_female,
        faces=aligned_faces(SAMPLE_PHOTO),
        options=ExportOptions(),
        report=report_line,
    )


def aligned_faces(photo: Path) -> NDArray[np.uint8]:
    """Align the faces of one photo: (N, 512, 512, 3) uint8 RGB."""
    return prepare(photo, Options()).aligned
