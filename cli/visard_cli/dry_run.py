"""`visard swap --dry-run`: what would become of each face, as far as it is known without a server, and a picture of it.

The pictures show the originals, with a numbered box around each face that was found.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from visard.pipeline import Found, choices_of, find, unswappable
from visard.policy import REASONS, withheld
from visard_cli.console import coloured, err, out
from visard_cli.exit_codes import exit_code
from visard_errors import NoFace, VisardError
from visard_preprocess.files import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from visard.options import Options
    from visard.policy import FaceOutcome, Reason, Unswapped
    from visard_preprocess.align import Face

_STYLES: dict[FaceOutcome, tuple[str, tuple[int, int, int]]] = {  # in the table, and in the picture
    "swapped": ("green", (0, 130, 95)),
    "covered": ("yellow", (230, 159, 0)),
    "visible": ("bold red", (214, 0, 43)),
}
_OTHERWISE: dict[Unswapped, str] = {"cover": "covered", "withhold": "the photo withheld", "show": "left visible"}
_WARNING = "This is the original: nothing in it is anonymised."
_MIN_WIDTH = 480  # of a picture, so that there is room for words


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would become of a face.

    Attributes:
        face: as it was found.
        outcome: of a swap only that it would be tried: how good it is will be known when it is there.
        reason: why it would not be swapped.
    """

    face: Face
    outcome: FaceOutcome
    reason: Reason | None = None


def plans_of(found: Found, options: Options) -> list[Plan]:
    """Say what would become of each face; where the photo would be withheld for one, that one counts as covered."""
    plans = []
    for face, choice in zip(found.faces, choices_of(found, options), strict=True):
        if choice == "leave":
            plans.append(Plan(face=face, outcome="visible", reason="chosen"))
        elif (reason := unswappable(face)) is not None:
            plans.append(
                Plan(face=face, outcome="visible" if options.unswapped == "show" else "covered", reason=reason)
            )
        else:
            plans.append(Plan(face=face, outcome="swapped"))
    return plans


def problem_of(plans: list[Plan], options: Options) -> VisardError | None:
    """Why nothing would be written of a photo, as far as that is known."""
    if not plans:
        return NoFace("no face was found: lower --detector-threshold, or draw one with --box")
    reasons = [plan.reason for plan in plans if plan.reason not in (None, "chosen")]
    return withheld(reasons) if reasons and options.unswapped == "withhold" else None


def dry_run(photos: list[Path], targets: list[Path], options: Options, *, as_json: bool) -> int:
    """Look at photos, write a picture of each, and say what would become of them.

    Args:
        photos: at least one.
        targets: where each picture goes.
        options: as for the run itself.
        as_json: an object per photo on standard output, instead of a table.

    Returns:
        The exit code: that of the first photo of which nothing would be written, or no picture was.
    """
    table, codes = _table(), []
    for photo, target in zip(photos, targets, strict=True):
        plans: list[Plan] = []
        saved: list[Path] = []
        problem: VisardError | None = None
        try:
            found = find(photo, options)
            plans = plans_of(found, options)
            problem = problem_of(plans, options)
            _save(picture(found.photo, plans, options.unswapped), target)
            saved = [target]
        except VisardError as error:
            problem = error
        if as_json:
            sys.stdout.write(_json_line(photo, saved, plans, problem) + "\n")
        else:
            _add_rows(table, photo, plans)
            for path in saved:
                err.print(one_line(f"Boxes drawn: {path}"), soft_wrap=True)
            if problem is not None:
                words = coloured("red", f"{one_line(photo.name)}: {type(problem).__name__}", f": {problem}")
                err.print(words, soft_wrap=True)
        if problem is not None:
            codes.append(exit_code(problem))
    if not as_json:
        out.print(table)
        err.print(f"A face whose swap is not good enough will be {_OTHERWISE[options.unswapped]} after all.")
    err.print(coloured("bold red", "The pictures show the originals", ": do not pass them on."))
    return codes[0] if codes else 0


def picture(photo: NDArray[np.uint8], plans: list[Plan], unswapped: Unswapped) -> NDArray[np.uint8]:
    """Draw a box around each face, with its number and score, and a legend below.

    Args:
        photo: (H, W, 3) uint8 RGB.
        plans: of its faces, in their order.
        unswapped: what becomes of those whose swap does not do.

    Returns:
        The same, larger; uint8 RGB.
    """
    height, width = photo.shape[:2]
    size = min(60, max(14, max(height, width) // 60))
    font = ImageFont.load_default(size)
    lines = [
        wrapped
        for colour, words in _legend(plans, unswapped)
        for wrapped in _wrapped(words, colour, font, max(width, _MIN_WIDTH) - 3 * size)
    ]
    line = round(1.4 * size)
    canvas = Image.new("RGB", (max(width, _MIN_WIDTH), height + line * len(lines) + size), "white")
    canvas.paste(Image.fromarray(photo))
    draw = ImageDraw.Draw(canvas)
    for number, plan in enumerate(plans, 1):
        _draw_box(draw, number, plan, font, size)
    draw.rectangle((0, height, canvas.width, canvas.height), fill="white")  # a box may leave the photo
    for row, (colour, words) in enumerate(lines):
        top = height + size // 2 + row * line
        if colour is not None:
            draw.rectangle(
                (size // 2, top + size // 4, size // 2 + size // 2, top + size // 4 + size // 2), fill=colour
            )
        draw.text((1.5 * size, top), words, fill="black", font=font)
    return np.asarray(canvas)


def _draw_box(draw: ImageDraw.ImageDraw, number: int, plan: Plan, font: Any, size: int) -> None:
    colour = _STYLES[plan.outcome][1]
    left, top, right, bottom = (round(edge) for edge in plan.face.box)
    draw.rectangle((left, top, right, bottom), outline=colour, width=max(2, size // 7))
    label = f"{number}: {'by hand' if plan.face.by_hand else f'{plan.face.confidence:.2f}'}"
    if draw.textlength(label, font=font) + size // 2 > right - left:
        label = str(number)  # in a crowd it would hide the faces beside
    wide, high = round(draw.textlength(label, font=font)) + size // 2, round(1.2 * size)
    left, top = max(left, 0), top - high if top >= high else max(top, 0)
    draw.rectangle((left, top, left + wide, top + high), fill=colour)
    draw.text((left + size // 4, top), label, fill="black" if plan.outcome == "covered" else "white", font=font)


def _legend(plans: list[Plan], unswapped: Unswapped) -> Iterator[tuple[tuple[int, int, int] | None, str]]:
    groups: dict[tuple[FaceOutcome, Reason | None], list[str]] = {}
    for number, plan in enumerate(plans, 1):
        groups.setdefault((plan.outcome, plan.reason), []).append(str(number))
    for (outcome, reason), numbers in sorted(groups.items(), key=lambda group: list(_STYLES).index(group[0][0])):
        said = f"swapped, or {_OTHERWISE[unswapped]} if the swap is not good enough"
        if reason is not None:
            what = _OTHERWISE["withhold"] if unswapped == "withhold" and outcome == "covered" else outcome
            said = f"{what}: {REASONS[reason]}"
        yield _STYLES[outcome][1], f"{', '.join(numbers)}  {said}"
    if not plans:
        yield None, "No face was found."
    yield None, f"{_WARNING} A face without a box was not seen, and would stay visible."


def _wrapped(words: str, colour: Any, font: Any, width: float) -> Iterator[tuple[Any, str]]:
    """Break a line where it is too wide; the colour goes with its first part."""
    line = ""
    for word in words.split(" "):
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > width:
            yield colour, line
            line, colour = word, None
        else:
            line = longer
    yield colour, line


def _save(drawn: NDArray[np.uint8], target: Path) -> None:
    from visard_preprocess.photo import write_photo

    write_photo(drawn, target, source_type=None)


def _table() -> Table:
    table = Table(title="What would become of the faces", title_justify="left")
    for heading in ("photo", "face", "would be", "score", "left, top, right, bottom"):
        table.add_column(heading, overflow="fold")
    return table


def _add_rows(table: Table, photo: Path, plans: list[Plan]) -> None:
    name = one_line(photo.name)
    if not plans:
        table.add_row(name, *["–"] * 4)
    for number, plan in enumerate(plans, 1):
        said = coloured(
            _STYLES[plan.outcome][0], plan.outcome, "" if plan.reason is None else f": {REASONS[plan.reason]}"
        )
        score = "by hand" if plan.face.by_hand else f"{plan.face.confidence:.2f}"
        box = ",".join(str(round(edge)) for edge in plan.face.box)
        table.add_row(name, f"{number}/{len(plans)}", said, score, box)


def _json_line(photo: Path, saved: list[Path], plans: list[Plan], problem: VisardError | None) -> str:
    faces = [
        {
            "box": list(plan.face.box),
            "would_be": plan.outcome,
            "reason": plan.reason,
            "score": None if plan.face.by_hand else round(plan.face.confidence, 4),
            "by_hand": plan.face.by_hand,
        }
        for plan in plans
    ]
    line: dict[str, Any] = {"photo": str(photo), "saved": [str(path) for path in saved], "faces": faces}
    if problem is not None:
        line |= {"error": type(problem).__name__, "message": str(problem)}
    return json.dumps(line)
