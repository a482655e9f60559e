"""What the command line borrows from its neighbours: the embedded server, the export, and the demo models.

The one file of this package that reaches into `visard_server` and `visard_export`, when a command needs them, so that
the SDK never loads torch.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from platformdirs import user_cache_path

from visard.pipeline import Options, prepare
from visard_errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from visard_server.triton import TritonServer

SAMPLE_PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"  # NASA, public domain


def neighbour(extra: str, what: str, module: str) -> Any:
    """Import one of our packages that needs an extra."""
    try:
        return import_module(module)
    except MissingExtra:
        raise
    except ImportError as error:
        raise MissingExtra(extra, f"{what} ({error})") from error


def embedded_server(
    models: Path | None, report_line: Callable[[str], None] = lambda line: None, **settings: Any
) -> TritonServer:
    """Make a server of a model repository, of the demo models where there is none given; not started yet.

    Args:
        models: the repository.
        report_line: takes a line of progress.
        settings: of `TritonServer`.
    """
    triton = neighbour("serve", "the embedded server", "visard_server.triton")
    return cast("TritonServer", triton.TritonServer(models or demo_models(report_line), **settings))


def demo_models(report_line: Callable[[str], None] = lambda line: None) -> Path:
    """Find the demo models in the user's cache folder; the first call exports them there, which takes a minute.

    The folder's name holds the digest of all that the export depends on, so that whatever changes is exported anew.
    Only models lie there, never a photograph.
    """
    repository = neighbour("export", "making the demo models", "visard_export.repository")
    sources = [
        *Path(repository.__file__).parent.rglob("*.py"),
        *Path(repository.__file__).parent.rglob("*.safetensors"),
        *repository.static_repository().rglob("*.pbtxt"),
        *repository.static_repository().rglob("*.py"),
    ]
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(sources)))
    folder = user_cache_path("visard") / f"demo-models-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        export_demo_models(folder, report=report_line)
    return folder


def export_demo_models(folder: Path, **settings: Any) -> None:
    """Export the demo weights; `settings` are `export_repository`'s."""
    demo = neighbour("export", "making the demo models", "visard_export.demo")
    export = neighbour("export", "making the demo models", "visard_export.export")
    paths = demo.demo_checkpoints()
    export.export_repository(
        folder,
        classifier=paths.classifier,
        to_male=paths.to_male,
        to_female=paths.to_female,
        faces=aligned_faces(SAMPLE_PHOTO),
        **settings,
    )


def aligned_faces(photo: Path) -> NDArray[np.uint8]:
    """Align the faces of one photo: (N, 512, 512, 3) uint8 RGB."""
    return prepare(photo, Options()).aligned
