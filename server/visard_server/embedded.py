"""The embedded server as it comes: with the demo models, and a sample photo to try them on.

The only file of this package that imports the SDK and the export.
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


def demo_models_folder() -> Path:
    """Where the demo models are, or will be, in the user's cache folder.

    The folder's name holds the digest of all that they are made of, so that whatever changes is made anew.
    """
    sources = [
        *Path(repository.__file__).parent.glob("*.py"),
        *(path for path in (Path(repository.__file__).parent / "weights").iterdir() if path.is_file()),
        *repository.static_repository().rglob("*.pbtxt"),
        *repository.static_repository().rglob("*.py"),
    ]
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(sources)))
    return user_cache_path("visard") / f"demo-models-{digest.hexdigest()[:12]}"


def demo_models(report_line: Callable[[str], None] = lambda line: None) -> Path:
    """Find the demo models, see `demo_models_folder`; the first call puts them together there, which takes a second.

    Only models lie there, never a photograph.
    """
    folder = demo_models_folder()
    if not folder.is_dir():
        with needs("local", "making the demo models"):
            from visard_export.prebuilt import put_together
        put_together(folder, report_line)
    return folder


def aligned_faces(photo: Path) -> NDArray[np.uint8]:
    """Align the faces of one photo: (N, 512, 512, 3) uint8 RGB."""
    return prepare(photo, Options()).aligned
