"""The faces that were found in a photo, as page and REST API answer with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visard.pipeline import unswappable

if TYPE_CHECKING:
    from visard import Found


def faces_found(found: Found) -> list[dict[str, Any]]:
    """Describe the faces of a photo."""
    return [
        {
            "index": index,
            "box": [round(float(edge), 1) for edge in face.box],
            "too_small": face.too_small,
            "reason": unswappable(face),
            "by_hand": face.by_hand,
            "gender": None if gender is None else {"label": gender.label, "confidence": round(gender.confidence, 4)},
        }
        for index, (face, gender) in enumerate(zip(found.faces, found.genders, strict=True))
    ]
