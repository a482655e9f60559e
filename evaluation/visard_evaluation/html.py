"""An evaluation as one HTML page that loads nothing: sentences, figures, plots, groups, worst cases.

Pictures of people are in it only where the evaluation kept some. `summary` makes the figures.
"""

from __future__ import annotations

import base64
from importlib import resources
from typing import TYPE_CHECKING

from visard_errors import MissingExtra
from visard_evaluation.brief import brief
from visard_evaluation.plots import draw
from visard_evaluation.rows import rows
from visard_evaluation.sentences import sentences
from visard_evaluation.wording import caveats, cell, worst_cases

try:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    raise MissingExtra("evaluate", "a report") from error

if TYPE_CHECKING:
    from visard_evaluation.summary import Evaluation

_COMPARED = ("swap success", "still matched (dlib)", "matched after swap-back (dlib)")


def write_html(evaluation: Evaluation, title: str, *, results: bool = False) -> str:
    """Write the report.

    Args:
        evaluation: what was found.
        title: what was evaluated.
        results: whether finished results were judged.
    """
    table = list(rows(evaluation))
    plots = draw(evaluation, table, [row for row in table if row.label in _COMPARED])
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("visard_evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        evaluation=evaluation,
        rows=table,
        cell=cell,
        brief=list(brief(evaluation)),
        sentences=list(sentences(evaluation)),
        caveats=list(caveats(evaluation, results=results)),
        worst=list(worst_cases(evaluation)),
        pictures=_pictures(evaluation),
        rates=Markup(plots.rates),  # noqa: S704 - drawn by matplotlib, which escapes what it writes
        identities={name: Markup(svg) for name, svg in plots.identities.items()},  # noqa: S704
        utility=Markup(plots.utility),  # noqa: S704
        group_plots={column: Markup(svg) for column, svg in plots.groups.items()},  # noqa: S704
    )


def _pictures(evaluation: Evaluation) -> dict[str, list[str]]:
    """File name → data addresses of the face before, published, and swapped back; empty without pictures."""
    return {
        each.photo.name: [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in each.pictures]
        for each in evaluation.measures
        if each.pictures is not None
    }
