"""The options for preparing photographs. Importing them needs no dlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from typing_extensions import Doc

from visard.declared import check


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How photographs are prepared. A validation split of the source's own leaves `validation_share` unused."""

    validation_share: Annotated[
        float, Interval(ge=0.0, le=0.5), Doc("Share of the people of each gender to hold out.")
    ] = 0.1
    seed: Annotated[int, Doc("Decides who is held out, whatever the order of the files.")] = 0
    workers: Annotated[int | None, Interval(ge=1), Doc("Processes; one per core by default.")] = None

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        check(self)
