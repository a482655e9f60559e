"""What a caller can ask for: the options of a photo, and the choices for one face."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Annotated, Literal

from annotated_types import Interval
from typing_extensions import Doc

from visard.boxes import check_boxes
from visard.declared import check
from visard.policy import Unswapped
from visard.wire import Direction
from visard_preprocess import DETECTOR_THRESHOLD, MAX_PIXELS, CoverStyle, Keep

# A direction for one face, or that it is covered, or stays visible.
Choice = Literal["opposite", "to_male", "to_female", "cover", "leave"]

# What other options have too, in the same words.
DirectionOption = Annotated[
    Direction, Doc("Swap to the opposite of each face's apparent gender, or all faces one way.")
]
DetectorThreshold = Annotated[
    float,
    Interval(ge=0.3, le=0.95),
    Doc("The score from which on something is a face: lower finds more faces, and more that are none."),
]
MinConfidence = Annotated[
    float, Interval(ge=0.5, le=1.0), Doc("A face whose apparent gender is less certain counts as not swapped.")
]
UnswappedOption = Annotated[
    Unswapped,
    Doc(
        "A face that could not be swapped well enough, also with a second persona: cover it, withhold the photo, or "
        "leave it visible."
    ),
]
IdentityOption = Annotated[
    bool,
    Doc("A face that a recogniser still matches counts as not swapped. Costs 16 ms of processor time a face."),
]
CoverOption = Annotated[
    CoverStyle,
    Doc(
        "How a covered head looks: a soft cloud or a mosaic of 16 coarse colours, or one grey, of which nothing of the "
        "head can be told."
    ),
]
KeepOption = Annotated[
    Keep,
    Doc(
        "What stays of the photo's metadata: nothing, how it was exposed (time, aperture, ISO, focal length), its date "
        "and time, or both. Never places, names, serial numbers, notes or thumbnails."
    ),
]
PersonaKey = Annotated[
    str | bytes | None,
    Doc(
        "Secret from which the looks are drawn: the same key gives the same looks, and photos that can be linked. "
        "Drawn anew for each photo without it."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do with a photo.

    Where the direction is given nobody asks for a face's apparent gender first, and `min_confidence` has no meaning.
    """

    faces: Annotated[
        Literal["all", "largest"], Doc("'largest' leaves every other face visible, but not those drawn by hand.")
    ] = "all"
    direction: DirectionOption = "opposite"
    min_confidence: MinConfidence = 0.5
    unswapped: UnswappedOption = "cover"
    cover: CoverOption = "soft"
    output: Annotated[
        Literal["photo", "crops"], Doc("The photo with the faces blended in, or the generated faces alone.")
    ] = "photo"
    identity: IdentityOption = True
    detector_threshold: DetectorThreshold = DETECTOR_THRESHOLD
    landmarks_model: Annotated[
        str | PathLike[str] | None,
        Doc("Path of another 68-point predictor (.dat or .dat.bz2) than the installed one."),
    ] = None
    max_pixels: Annotated[int, Interval(ge=1), Doc("A photo with more is refused before it is decoded.")] = MAX_PIXELS
    keep: KeepOption = "nothing"
    persona_key: PersonaKey = field(default=None, repr=False)
    boxes: Annotated[
        tuple[tuple[float, float, float, float], ...],
        Doc(
            "Around faces that the detector misses: left, top, right and bottom in pixels of the upright photo, at "
            "most 100. Such a face is swapped or covered as any other; a box over a face that was found adds none."
        ),
    ] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check(self)
        object.__setattr__(self, "boxes", check_boxes(self.boxes))
        if self.persona_key is not None and not self.persona_key:
            raise ValueError("persona_key must not be empty: everybody's empty key is the same")
