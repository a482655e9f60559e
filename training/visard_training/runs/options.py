"""Options that several trainings share. Importing them needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval
from typing_extensions import Doc

MixedPrecision = Annotated[Literal["no", "bf16"], Doc("'bf16' where it is faster.")]
SaveEvery = Annotated[int, Interval(ge=1), Doc("Steps between two states on disk.")]
Half = Annotated[bool, Doc("Write the result in half precision.")]
Licence = Annotated[str, Doc("Of the weights, as an SPDX identifier: what the faces allow.")]
UNKNOWN_LICENCE = "LicenseRef-Unknown"
