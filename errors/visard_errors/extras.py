"""Optional parts of Visard: if a library is missing, the error names the extra that installs it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from visard_errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import in the body what an extra brings.

        with needs("export", "exporting models"):
            import torch

    Args:
        extra: its name in `pip install 'visard[extra]'`.
        what: what cannot be done without it.

    Raises:
        MissingExtra: an import in the body failed.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ImportError as error:
        raise MissingExtra(extra, f"{what} ({error})") from error
