"""The plots of a report, as SVG inside the page: no external font, no picture, no script.

Points are aggregated or unnamed; no pixels.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from visard_errors import MissingExtra

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra("evaluate", "a report") from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from visard_evaluation.figures import Figures
    from visard_evaluation.rows import Row
    from visard_evaluation.search import Identity
    from visard_evaluation.summary import Evaluation

# Colour-blind safe (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#999999"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text, in any script that the reader's browser has letters for
    "text.parse_math": False,  # a group may be called "$5"
    "svg.hashsalt": "visard",  # the same figures give the same file
}
_WIDTH = 7.2


@dataclass(frozen=True, kw_only=True)
class Plots:
    """The plots of a report, an `<svg>` element each.

    Attributes:
        rates: every share with its interval.
        identities: distances, by the recogniser's name.
        utility: how drifts are spread.
        groups: shares of each group, by the column's name.
    """

    rates: str
    identities: Mapping[str, str]
    utility: str
    groups: Mapping[str, str]


def draw(evaluation: Evaluation, rows: Sequence[Row], compared: Sequence[Row]) -> Plots:
    """Draw the plots of an evaluation.

    Args:
        evaluation: what was found.
        rows: the figures of the report.
        compared: those that the groups are compared by.
    """
    with rc_context(_STYLE):
        return Plots(
            rates=_rates_plot(evaluation.figures, rows),
            identities={name: _identity_plot(identity) for name, identity in evaluation.identities.items()},
            utility=_utility_plot(evaluation),
            groups={column: _group_plot(column, parts, compared) for column, parts in evaluation.groups.items()},
        )


def _rates_plot(figures: Figures, rows: Sequence[Row]) -> str:
    """Draw shares with their intervals, one line each; figures of another kind and without a value are left out."""
    shown = [row for row in rows if row.kind == "share" and row.read(figures).value is not None]
    figure = Figure(figsize=(_WIDTH, 0.6 + 0.32 * len(shown)))
    axes = figure.subplots()
    for height, row in enumerate(reversed(shown)):
        _draw_share(axes, height, row, figures, {"high": _BLUE, "low": _ORANGE}.get(row.better, _GREY))
    axes.set_yticks(range(len(shown)), [row.label for row in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(-1, 101)
    axes.set_xlabel("% of faces, with 95 % interval (blue: high is good, orange: low is good)")
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def _identity_plot(identity: Identity) -> str:
    """Draw the distances of results, attacked results and strangers, and the threshold among them."""
    anonymised = [match.distance for match in identity.matches["anonymised"]]
    back = [match.distance for match in identity.matches["swapped_back"]]
    everything = np.concatenate([anonymised, back, identity.strangers, [identity.threshold]])
    bins = np.linspace(0, 1.02 * everything.max(), 33)
    figure = Figure(figsize=(_WIDTH, 2.8))
    axes = figure.subplots()
    if len(identity.strangers):
        axes.hist(
            identity.strangers,
            bins,
            weights=np.full(len(identity.strangers), 100 / len(identity.strangers)),
            color=_GREY,
            alpha=0.35,
            label="different people's originals",
        )
    for distances, colour, label in (
        (anonymised, _BLUE, "original and result"),
        (back, _ORANGE, "original and result swapped back"),
    ):
        weights = np.full(len(distances), 100 / len(distances))
        axes.hist(distances, bins, weights=weights, histtype="step", linewidth=1.8, color=colour, label=label)
    axes.axvline(identity.threshold, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"same person below {identity.threshold:g}",
        (identity.threshold, 1),
        xytext=(4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=8,
    )
    axes.set_xlabel("distance of descriptors")
    axes.set_ylabel("% of pairs")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return _svg(figure)


def _utility_plot(evaluation: Evaluation) -> str:
    """Draw how similarity, landmarks, pose and surroundings are spread, a panel each."""
    measures = evaluation.measures
    figure = Figure(figsize=(_WIDTH, 2.6))
    panels = figure.subplots(1, 4)
    by_gender = {
        gender: [each.similarity_percent for each in measures if each.group == gender] for gender in ("female", "male")
    }
    poses = {angle: [getattr(each.pose_drift, angle) for each in measures] for angle in ("yaw", "pitch", "roll")}
    for axes, title, values in zip(
        panels,
        ("similarity, %", "landmark drift, %", "pose drift, °", "around the face, levels"),
        (
            by_gender,
            {"": [each.landmark_drift_percent for each in measures]},
            poses,
            {"": [each.outside.levels for each in measures]},
        ),
        strict=True,
    ):
        shown = {label: points for label, points in values.items() if points}
        axes.boxplot(
            list(shown.values()),
            widths=0.5,
            patch_artist=True,
            boxprops={"facecolor": _BLUE, "alpha": 0.35},
            medianprops={"color": "black"},
            flierprops={"markersize": 3},
        )
        axes.set_xticks(range(1, len(shown) + 1), list(shown))
        axes.set_title(title, fontsize=9)
    return _svg(figure)


def _group_plot(column: str, parts: Mapping[str, Figures], rows: Sequence[Row]) -> str:
    """Draw shares of the parts of one column (value → figures) below each other, a panel for each share."""
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.3 * len(parts)))
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    values = list(parts)[::-1]
    for axes, row in zip(panels, rows, strict=True):
        for height, name in enumerate(values):
            _draw_share(axes, height, row, parts[name], _BLUE)
        axes.set_xlim(-3, 103)
        axes.set_title(f"{row.label}, %", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(values)), [f"{name} ({parts[name].n})" for name in values])
    panels[0].set_ylim(-0.6, len(values) - 0.4)
    panels[0].set_ylabel(column)
    return _svg(figure)


def _draw_share(axes: Axes, height: float, row: Row, figures: Figures, colour: str) -> None:
    estimate = row.read(figures)
    if estimate.value is None or estimate.interval is None:
        return
    ends = [100 * edge for edge in estimate.interval]
    axes.plot(ends, [height, height], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
    axes.plot([100 * estimate.value], [height], "o", color=colour)


def _svg(figure: Figure) -> str:
    """Write a figure as an `<svg>` element without the prologue and metadata, which name outside addresses."""
    text = StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # from the font that measures; the browser has its own
        figure.tight_layout()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
