"""An evaluation in Markdown: plain sentences, the table, what to keep in mind, and the closest matches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visard_evaluation.brief import brief
from visard_evaluation.rows import rows
from visard_evaluation.sentences import sentences
from visard_evaluation.wording import caveats, cell, worst_cases

if TYPE_CHECKING:
    from visard_evaluation.summary import Evaluation

_CASES = 3


def write_markdown(evaluation: Evaluation, title: str, *, results: bool = False) -> str:
    """Write the summary; file names stand in it, pictures do not.

    Args:
        evaluation: what was found.
        title: what was evaluated.
        results: whether finished results were judged.
    """
    figures, genders = evaluation.figures, evaluation.groups["gender"]
    lines = [
        f"# {_plain(title)}",
        "",
        *(line for paragraph in brief(evaluation) for line in (_plain(paragraph), "")),
        "## In detail",
        "",
        *(f"* {_plain(sentence)}" for sentence in sentences(evaluation)),
        "",
        f"| figure | all ({figures.n}) | " + " | ".join(f"{g} ({part.n})" for g, part in genders.items()) + " |",
        "|---|" + "---|" * (1 + len(genders)),
    ]
    for row in rows(evaluation):
        cells = [cell(part, row) for part in (figures, *genders.values())]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    lines += ["", "## To keep in mind", ""]
    lines += [f"* {_plain(sentence)}" for sentence in caveats(evaluation, results=results)]
    lines += ["", "## Worst cases", ""]
    for heading, cases in worst_cases(evaluation):
        named = ", ".join(f"`{_plain(file)}` {value}".rstrip() for file, value in cases[:_CASES])
        lines.append(f"* {heading}: {named}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown, HTML or a new line."""
    return " ".join(text.split()).translate(str.maketrans("`|<>", "'¦‹›"))
