"""How a result shows itself in a notebook: the anonymised photo, reduced, and a table of its faces. Never the original.

A notebook keeps what it shows in its file.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from visard.policy import REASONS

if TYPE_CHECKING:
    from visard.result import ApparentGender, FaceResult, Result, UnswappedFace

MAX_SIDE_PX = 640  # of the picture
_MOST_CROPS = 8  # where there is no photo, the largest faces stand side by side

_HEADINGS = ("face", "outcome", "apparent gender", "after", "similarity", "identity distance")


def jpeg(result: Result) -> bytes | None:
    """Reduce what was made, the photo or else the generated faces, to at most 640 pixels a side, as a JPEG file.

    None where nothing was made.
    """
    from PIL import Image

    from visard_preprocess.photo import encode_photo

    if result.photo is not None:
        made, source_type = result.photo, result.source_type
    elif result.faces:
        made = np.hstack([face.swapped for face in result.faces[:_MOST_CROPS]])
        source_type = "trainedAlgorithmicMedia"
    else:
        return None
    picture = Image.fromarray(made)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return encode_photo(np.asarray(picture), "JPEG", source_type=source_type)


def html(result: Result) -> str:
    """Write the picture and a row for each face as HTML without scripts, styles or addresses."""
    picture = jpeg(result)
    shown = ""
    if picture is not None:
        data = base64.b64encode(picture).decode()
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="the anonymised photo">'
    rows = "".join(_row(_cells(face), "td") for face in result.all_faces)
    return f"<div>{shown}<table><thead>{_row(_HEADINGS, 'th')}</thead><tbody>{rows}</tbody></table></div>"


def _cells(face: FaceResult | UnswappedFace) -> tuple[str, ...]:
    from visard.result import FaceResult

    outcome = face.outcome if face.reason is None else f"{face.outcome}: {REASONS[face.reason]}"
    if not isinstance(face, FaceResult):
        return (str(face.index + 1), outcome, *["–"] * 4)
    distance = "–"
    if face.identity_distance is not None:
        distance = f"{face.identity_distance:.2f} ({'same person' if face.same_person else 'not matched'})"
    return (
        str(face.index + 1),
        outcome,
        "not asked" if face.gender is None else _gender(face.gender),
        _gender(face.swapped_gender),
        f"{face.similarity_percent:.1f} %",
        distance,
    )


def _gender(gender: ApparentGender) -> str:
    return f"{gender.label} {gender.confidence:.0%}"


def _row(cells: tuple[str, ...], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
